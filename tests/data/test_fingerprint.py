"""A fingerprint tells that data changed, and where."""

from dataclasses import replace

import torch

from prrfl.data.fingerprint import difference, fingerprint, fingerprints, short
from prrfl.types import Examples
from tests.sites import tiny_examples, tiny_sites


def test_a_fingerprint_says_what_changed_and_where():
    sites = tiny_sites(2)
    before = fingerprints(sites)
    assert difference(before, fingerprints(tiny_sites(2))) == ""

    def said(**changed):
        other = replace(sites[1].train, **changed)
        return difference(before, fingerprints([sites[0], replace(sites[1], train=other)]))

    train = sites[1].train
    assert said(labels=train.labels.roll(1)) == "site s1, train: other labels"
    inputs = train.inputs.clone()
    inputs[20, 2, 7, 7] += 1
    assert said(inputs=inputs) == "site s1, train: other pixels with the same names"
    assert said(ids=tuple(map(str, range(21)))) == "site s1, train: other images, or another order"
    fewer = {"inputs": train.inputs[:14], "labels": train.labels[:14]}
    assert said(**fewer) == "site s1, train: 21 → 14 images"
    assert difference(before, fingerprints(tiny_sites(1))) == "site s1 is missing"
    assert difference(before, fingerprints(tiny_sites(3))) == "site s2 is new"


def test_a_fingerprint_is_of_the_values_and_not_of_how_they_lie_in_memory():
    one = tiny_examples(300, 0)
    other = replace(one, inputs=one.inputs.contiguous(memory_format=torch.channels_last))
    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) != fingerprint(replace(one, inputs=one.inputs.float()))


def test_any_tensor_has_one():
    for inputs in (torch.randn(4), torch.randn(4, 3).bfloat16(), torch.empty(0, 3, 8, 8)):
        assert fingerprint(Examples(inputs, torch.arange(len(inputs)))).images == len(inputs)


def test_a_data_set_is_cited_by_twelve_digits():
    cited = short(fingerprints(tiny_sites(2)))
    assert len(cited) == 12
    assert int(cited, 16) >= 0
    assert cited != short(fingerprints(tiny_sites(3)))
