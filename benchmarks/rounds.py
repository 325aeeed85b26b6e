"""Whole rounds: the package beside the plain form of the paper, in time and in results."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.contender import PAPER, Contender
from benchmarks.figures import Figure, Settings, absolute, ratio
from benchmarks.paper_form import PaperForm, Plan
from benchmarks.workload import paper_recipe, pictures
from prrfl.algorithms import PRRFL
from prrfl.data.images import Entry, load_entries
from prrfl.data.layout import CLASSES
from prrfl.engine import InProcess, run_rounds
from prrfl.evaluation import score
from prrfl.training import predict
from prrfl.types import ExchangeRecord, SiteData, Tensors

T = TypeVar("T")

ROUNDS = 3


@dataclass(frozen=True)
class Form:
    """A way to run the method, in this process.

    Attributes:
        rounds: every step is one round.
        outputs: by site, the personalised network's logits on the test images as they are now.
        models: by site, both networks' weights as they are now.
    """

    rounds: Iterator[object]
    outputs: Callable[[], Mapping[str, Tensor]]
    models: Callable[[], Mapping[str, Mapping[str, Tensors]]]


def paper_form(entries: Sequence[Entry], plan: Plan) -> Form:
    """Return the plain form."""
    form = PaperForm(entries, plan)
    return Form(form.rounds(), form.outputs, form.models)


def package(sites: Sequence[SiteData], plan: Plan) -> Form:
    """Return the package."""
    engine = InProcess(PRRFL(), sites, plan.recipe)
    records = run_rounds(
        PRRFL(),
        engine,
        rounds=plan.rounds,
        epochs=plan.epochs,
        seed=plan.seed,
        network=plan.recipe.network,
    )
    ends = (record for record in records if isinstance(record, ExchangeRecord))

    def outputs() -> dict[str, Tensor]:
        models = engine.models()
        return {
            site.name: predict([models[site.name]["personalised"]], site.test, plan.recipe)[0]
            for site in sites
        }

    return Form(ends, outputs, engine.models)


def race(forms: Mapping[str, Form]) -> None:
    """Run all rounds of all forms."""
    for form in forms.values():
        for _ in form.rounds:
            pass


def measure_round(settings: Settings) -> Iterator[Figure]:
    """Seconds of a round as users run it, and how many times as fast as the plain form it is."""
    names = (PAPER, "prrfl float32", "prrfl bfloat16")
    rounds = 1 + settings.repeats
    with pictures(settings, settings.size, settings.images) as (folder, _):
        contenders = {
            name: Contender(name, folder, settings.size, rounds, settings.epochs, settings.threads)
            for name in names
        }
        # One after the other: a contender has the machine for itself while the others wait.
        turns = {name: contender.round for name, contender in contenders.items()}
        seconds = settings.in_turns(turns, settings.repeats)
        for contender in contenders.values():
            contender.close()
    yield from absolute(seconds, "a round: ")
    for name in names[1:]:
        yield Figure(f"a round: {PAPER} / {name}", ratio(seconds, PAPER, name))


def measure_agreement(settings: Settings) -> Iterator[Figure]:
    """Whether package and plain form are the same algorithm; half the size and images will do for that.

    In float64 they are, up to rounding. In float32 training multiplies rounding errors, whosever they are:
    the yardstick is the package beside itself, from a start that differs by as much as rounding does.
    """
    size, images = max(32, settings.size // 2), max(12, settings.images // 2)
    with pictures(settings, size, images) as (_, entries):
        sites = load_entries(entries, image_size=size, classes=CLASSES)
        for precision in ("float64", "float32"):
            plan = Plan(paper_recipe(precision), size, ROUNDS, settings.epochs)
            forms = {
                PAPER: paper_form(entries, plan),
                "prrfl": package(sites, plan),
                "prrfl from a start 1e-7 off": package(sites, shaken(plan)),
            }
            race(forms)
            ours = forms.pop("prrfl")
            for name, other in forms.items():
                yield from differences(ours, other, sites, f"{precision}: prrfl and {name}")


def shaken(plan: Plan) -> Plan:
    """Return the plan with every parameter of the start multiplied by 1 + 1e-7 times a normal number."""
    network = deepcopy(plan.recipe.network)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
            parameter.copy_(parameter * (1 + 1e-7 * noise))
    return replace(plan, recipe=replace(plan.recipe, network=network))


def differences(a: Form, b: Form, sites: Sequence[SiteData], label: str) -> Iterator[Figure]:
    """Compare weights, outputs and scores after the last round, the largest difference over all sites."""
    outputs = by_site(a.outputs(), b.outputs())
    scores = [
        (score(x, site.test.labels), score(y, site.test.labels))
        for (x, y), site in zip(outputs, sites, strict=True)
    ]
    weights = [
        (x[name][key], y[name][key])
        for x, y in by_site(a.models(), b.models())
        for name in x
        for key in x[name]
    ]
    apart = {
        "weights": max((x.double() - y.double()).abs().max().item() for x, y in weights),
        "logits": max((x - y).abs().max().item() for x, y in outputs),
        "macro-F1": max(abs(x.macro_f1 - y.macro_f1) for x, y in scores),
        "AUC": max(abs(x.auc - y.auc) for x, y in scores if x.auc is not None and y.auc is not None),
    }
    for what, value in apart.items():
        yield Figure(f"{label}: {what} differ by", value, f"at most, after {ROUNDS} rounds")
    flipped = sum(int((x.argmax(1) != y.argmax(1)).sum()) for x, y in outputs)
    yield Figure(f"{label}: other class for", flipped, f"of {sum(len(x) for x, _ in outputs)} test images")


def by_site(a: Mapping[str, T], b: Mapping[str, T]) -> list[tuple[T, T]]:
    """Pair what both have of each site, in order of site."""
    return [(a[site], b[site]) for site in sorted(a)]
