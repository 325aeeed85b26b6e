"""`data build`: a data set that can be trained on, whole, or one line and nothing at all."""

import csv
import io
import re
import shutil
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prrfl.data.build import build, ham_entries, index_images, isic_entries
from prrfl.data.sources import load_sites
from tests.fuzz.cases import cases, listing, tried
from tests.fuzz.mutators import CELLS, changes, files

SOURCES = ("vidir_modern", "vidir_molemax", "rosendahl")
COUNT = 12


def picture(seed):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def ham_rows():
    rows = [["lesion_id", "image_id", "dx", "dataset"]]
    for source in SOURCES:
        for n in range(COUNT):
            rows.append([f"L{source}{n}", f"H_{source}_{n}", ("nv", "bkl", "mel")[n % 3], source])
    return rows


def isic_rows():
    rows = [["image_id", "melanoma", "seborrheic_keratosis"]]
    return rows + [[f"I_{n}", str(int(n % 3 == 2)), str(int(n % 3 == 1))] for n in range(COUNT)]


def as_csv(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


HAM = {row[1]: picture(k) for k, row in enumerate(ham_rows()[1:])}
ISIC = {row[0]: picture(1000 + k) for k, row in enumerate(isic_rows()[1:])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("archives")


def written(folder):
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "isic").mkdir(parents=True)
    with zipfile.ZipFile(folder / "ham.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in HAM.items():
            archive.writestr(f"images/{name}.png", content)
    for name, content in ISIC.items():
        (folder / "isic" / f"{name}.png").write_bytes(content)
    (folder / "ham.csv").write_bytes(as_csv(ham_rows()))
    (folder / "isic.csv").write_bytes(as_csv(isic_rows()))


def built(folder):
    """Build; assert that there is a whole data set, or that there is nothing."""
    out = folder / "out"
    before = listing(folder)

    def call():
        entries = [*ham_entries(folder / "ham.csv")[0], *isic_entries(folder / "isic.csv")]
        return len(entries), build(entries, index_images([folder / "ham.zip", folder / "isic"]), out, 8)

    done = tried(call, folder, "site client", "none of the images")
    if isinstance(done, str):
        assert listing(folder) == before
        return done
    named, missing = done
    sites = load_sites(out, image_size=8, classes=("nv", "bkl", "mel"))
    assert sum(len(s.split(part)) for s in sites for part in ("train", "valid", "test")) == named - len(
        missing
    )
    assert {name.split("/")[0] for name in listing(folder)} == {
        "ham.zip",
        "ham.csv",
        "isic",
        "isic.csv",
        "out",
    }
    return done


def test_whole_archives(folder):
    written(folder)
    assert built(folder) == (4 * COUNT, [])


@cases(60)
@given(change=changes)
def test_a_zip_of_changed_bytes(change, folder):
    written(folder)
    path = folder / "ham.zip"
    path.write_bytes(change(path.read_bytes()))
    built(folder)


@cases(80)
@given(data=st.data())
def test_tables_of_changed_cells(data, folder):
    written(folder)
    name, rows = data.draw(st.sampled_from([("ham.csv", ham_rows()), ("isic.csv", isic_rows())]))
    row = data.draw(st.integers(0, len(rows) - 1))
    rows[row][data.draw(st.integers(0, len(rows[0]) - 1))] = data.draw(CELLS)
    (folder / name).write_bytes(as_csv(rows))
    built(folder)


@cases(40)
@given(
    mutation=files, which=st.sampled_from(["ham.zip", "ham.csv", "isic.csv", "isic/I_3.png", "isic/I_4.png"])
)
def test_a_broken_file(mutation, which, folder):
    written(folder)
    mutation(folder / which)
    built(folder)


ODD = [
    "../../out.png",
    "/abs/other.png",
    "a/" * 2000 + "x.png",
    "n" * 300 + ".png",
    "I_0.png/",
    "\n.png",
]


@pytest.mark.parametrize("name", ODD, ids=lambda name: name[:12])
def test_an_odd_name_in_a_zip(name, folder):
    written(folder)
    with zipfile.ZipFile(folder / "ham.zip", "a") as archive:
        archive.writestr(name, HAM["H_rosendahl_0"])
    assert built(folder) == (4 * COUNT, [])


@pytest.mark.parametrize("name", ["/abs/I_0.png", "I_0.PNG"])
def test_a_second_image_of_a_name_in_a_zip(name, folder):
    written(folder)
    with zipfile.ZipFile(folder / "ham.zip", "a") as archive:
        archive.writestr(name, HAM["H_rosendahl_0"])
    assert re.fullmatch("image 'I_0' may be .*I_0.png.*, which differ; keep one of them", built(folder), re.I)


def test_names_with_commas_and_quotes_come_back(folder):
    written(folder)
    rows = ham_rows()
    for row in rows[1:]:
        row[0] = f'{row[0]}, "left"'
    (folder / "ham.csv").write_bytes(as_csv(rows))
    assert built(folder) == (4 * COUNT, [])
    (table,) = (folder / "out/csv_folder/clientA").glob("train_*.csv")
    with table.open(newline="") as file:
        assert all(row["lesion_id"].endswith(', "left"') for row in csv.DictReader(file))


def test_out_may_be_where_one_is(folder, prrfl, monkeypatch, tmp_path):
    written(folder)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    files = ["--ham", folder / "ham.zip", "--isic", folder / "isic"]
    files += ["--ham-csv", folder / "ham.csv", "--isic-csv", folder / "isic.csv"]
    code, _, err = prrfl("data", "build", *files, "--out", ".", "--image-size", 32)
    assert code == 0, err
    assert (tmp_path / "empty/data/clientA/img_resize32").is_dir()
