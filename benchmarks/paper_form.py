"""PRR-FL as one would write it from the paper, without regard to speed: the baseline.

Images are decoded each time they are used, networks are scored one at a time and with the graph kept, and the
server runs PFA on whole weights, one client after the other, in NumPy. It does the same work as the package:
same start, same batches in the same order, same augmentation, same number of scorings. So both give the same
scores, up to rounding. Randomness, augmentation, decoding, layers and the definition of scores come from the
package; the method itself is a second implementation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prrfl.data.images import Entry, read_image
from prrfl.evaluation import score
from prrfl.models.vgg16_slim import VGG16Slim
from prrfl.tensors import norm_keys
from prrfl.training import Recipe, generator, scoring_batch
from prrfl.types import Scores, Split, Tensors

RECOVER, EXCHANGE, SUBLIMATE = 1, 2, 3


@dataclass(frozen=True)
class Plan:
    """A run: the recipe of local training, the side of the images, and how often.

    Attributes:
        recipe: of the package, so that both have the same settings; ``bfloat16`` is not for the plain form.
        size: side of the images in pixels.
        rounds: number T of communication rounds.
        epochs: number E of local epochs in each, at least 2.
        seed: source of all randomness.
    """

    recipe: Recipe
    size: int
    rounds: int
    epochs: int
    seed: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """The type of all weights."""
        return torch.float64 if self.recipe.precision == "float64" else torch.float32

    def network(self) -> nn.Module:
        """Return a network of its own with the common start."""
        network = PlainVGG16Slim().to(self.dtype)
        network.load_state_dict(self.recipe.network.state_dict())
        return network


class PlainVGG16Slim(VGG16Slim):
    """The paper's network with its layers called in the paper's order."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4, self.layer5):
            assert isinstance(layer, nn.Sequential)
            for block in layer.children():
                conv, bn = block.get_submodule("conv"), block.get_submodule("bn")
                x = functional.relu(bn(conv(x)), inplace=True)
            x = functional.max_pool2d(x, kernel_size=2)
        logits: Tensor = self.fc2(self.fc1(x.mean(dim=(2, 3))))
        return logits


class Hospital:
    """A site: its list of images and its two networks."""

    def __init__(self, name: str, entries: Sequence[Entry], plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.entries = {
            split: [e for e in entries if e.split == split] for split in ("train", "valid", "test")
        }
        self.personalised = plan.network()
        self.deputy = plan.network()
        self.stage: int | None = None

    def begin_round(self, t: int) -> None:
        """Start both optimisers afresh and forget the stage."""
        rate, decay = 1e-2 * 0.5 ** (t // 5), self.plan.recipe.weight_decay
        self.stage = None
        self.optimisers = [
            torch.optim.SGD(network.parameters(), lr=rate, weight_decay=decay)
            for network in (self.personalised, self.deputy)
        ]

    def batches(
        self, split: Split, size: int, draw: torch.Generator | None = None, shuffle: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Decode, augment and normalise images batch by batch."""
        entries = self.entries[split]
        order = torch.randperm(len(entries), generator=draw) if shuffle else torch.arange(len(entries))
        augment, drawn = self.plan.recipe.augment, None
        if augment is not None and draw is not None:
            drawn = augment.draw((len(entries), 3, self.plan.size, self.plan.size), draw)
        chunks = list(torch.split(order, size))
        if len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        for chunk in chunks:
            chosen = [entries[index] for index in chunk.tolist()]
            pixels = np.stack([read_image(entry.path, self.plan.size) for entry in chosen])
            images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            if augment is not None:
                images = augment(images, drawn, chunk)
            inputs = self.plan.recipe.normalise(images).to(self.plan.dtype).contiguous()
            yield inputs, torch.tensor([entry.label for entry in chosen])

    def outputs(self, network: nn.Module, split: Split, draw: torch.Generator | None = None) -> Tensor:
        """Return a network's logits on all images of a split."""
        network.eval()
        # As many at a time as the package takes, for both round in the same way then.
        size = scoring_batch(self.plan.size**2, self.plan.recipe)
        return torch.cat([network(x).detach() for x, _ in self.batches(split, size, draw)])

    def score(self, network: nn.Module, split: Split, draw: torch.Generator | None = None) -> Scores:
        """Score a network on one split."""
        labels = torch.tensor([entry.label for entry in self.entries[split]])
        return score(self.outputs(network, split, draw), labels)

    def draw(self, t: int, w: int, purpose: str) -> torch.Generator:
        """Return the source of randomness of one epoch."""
        return generator(self.plan.seed, self.name, t, w, purpose)

    def train(self, t: int, w: int) -> None:
        """Run one epoch of Deputy-Enhanced Transfer."""
        f1_personalised, f1_deputy = (
            self.score(network, "train", self.draw(t, w, "score")).macro_f1
            for network in (self.personalised, self.deputy)
        )
        self.stage = next_stage(self.stage, f1_deputy, f1_personalised)
        self.personalised.train()
        self.deputy.train()
        draw = self.draw(t, w, "train")
        for inputs, labels in self.batches("train", self.plan.recipe.batch, draw, shuffle=True):
            p, d = self.personalised(inputs), self.deputy(inputs)
            loss_p, loss_d = functional.cross_entropy(p, labels), functional.cross_entropy(d, labels)
            if self.stage != RECOVER:
                loss_p = loss_p + divergence(teacher=d, student=p)
            if self.stage != SUBLIMATE:
                loss_d = loss_d + divergence(teacher=p, student=d)
            for loss, optimiser in zip((loss_p, loss_d), self.optimisers, strict=True):
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()


def next_stage(stage: int | None, f1_deputy: float, f1_personalised: float) -> int:
    """Return the stage of the coming epoch."""
    if stage is None or f1_deputy < 0.7 * f1_personalised:
        return RECOVER
    if stage == RECOVER or f1_deputy < 0.9 * f1_personalised:
        return EXCHANGE
    return SUBLIMATE


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(softmax teacher ‖ softmax student), summed over classes, mean over the batch."""
    target = functional.softmax(teacher.detach(), dim=1)
    return functional.kl_div(functional.log_softmax(student, dim=1), target, reduction="batchmean")


class PaperForm:
    """A whole run at all hospitals."""

    def __init__(self, entries: Sequence[Entry], plan: Plan) -> None:
        names = sorted({entry.site for entry in entries})
        self.plan = plan
        self.hospitals = [Hospital(name, [e for e in entries if e.site == name], plan) for name in names]

    def rounds(self) -> Iterator[list[Scores]]:
        """Run round by round; give the scores of each."""
        for t in range(self.plan.rounds):
            yield self.one_round(t)

    def one_round(self, t: int) -> list[Scores]:
        """Train, aggregate the deputies, score."""
        scores = []
        for hospital in self.hospitals:
            hospital.begin_round(t)
        for w in range(self.plan.epochs):
            for hospital in self.hospitals:
                hospital.train(t, w)
            scores += [hospital.score(hospital.personalised, "test") for hospital in self.hospitals]
        local = norm_keys(self.plan.recipe.network)
        states = [hospital.deputy.state_dict() for hospital in self.hospitals]
        aggregated = aggregate(states, 0.7 + t / self.plan.rounds * (0.95 - 0.7), local)
        for hospital, state in zip(self.hospitals, aggregated, strict=True):
            hospital.deputy.load_state_dict(state)
            scores.append(hospital.score(hospital.personalised, "test"))
            # The package scores the deputy before and after, and knows the personalised network's scores.
            scores.append(hospital.score(hospital.deputy, "test"))
            scores.append(hospital.score(hospital.personalised, "valid"))
        return scores

    def outputs(self) -> dict[str, Tensor]:
        """Return the personalised networks' logits on the test images."""
        return {h.name: h.outputs(h.personalised, "test") for h in self.hospitals}

    def models(self) -> dict[str, dict[str, Tensors]]:
        """Return both networks' weights, by hospital."""
        return {
            h.name: {"personalised": h.personalised.state_dict(), "deputy": h.deputy.state_dict()}
            for h in self.hospitals
        }


def aggregate(states: Sequence[Tensors], ratio: float, local: frozenset[str]) -> list[dict[str, Tensor]]:
    """Run Progressive Fourier Aggregation at the server: whole weights of all clients, to one for each."""
    results: list[dict[str, Tensor]] = [dict(state) for state in states]
    for key, first in states[0].items():
        if key in local:
            continue
        weights = [state[key].numpy() for state in states]
        if first.ndim in (2, 4):
            mixed = mix_low_band(weights, ratio)
        else:
            mixed = [np.mean(weights, axis=0)] * len(weights)
        for result, weight in zip(results, mixed, strict=True):
            result[key] = torch.from_numpy(np.ascontiguousarray(weight))
    return results


def mix_low_band(weights: Sequence[NDArray[np.floating]], ratio: float) -> list[NDArray[np.floating]]:
    """Give each client the mean low-frequency amplitudes of all; high frequencies and phases stay its own."""
    spectra = [np.fft.fftshift(np.fft.fft2(as_matrix(weight))) for weight in weights]
    amplitudes, phases = [np.abs(s) for s in spectra], [np.angle(s) for s in spectra]
    height, width = spectra[0].shape
    rows, columns = int(height * ratio / 2), int(width * ratio / 2)
    band = np.s_[height // 2 - rows : height // 2 + rows, width // 2 - columns : width // 2 + columns]
    mean = np.mean([amplitude[band] for amplitude in amplitudes], axis=0)
    mixed = []
    for weight, amplitude, phase in zip(weights, amplitudes, phases, strict=True):
        amplitude[band] = mean
        matrix = np.real(np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * phase))))
        mixed.append(from_matrix(matrix, weight.shape))
    return mixed


def as_matrix(weight: NDArray[np.floating]) -> NDArray[np.floating]:
    """Unfold (N, C, d1, d2) to (C·d1, d2·N)."""
    if weight.ndim == 2:
        return weight
    n, c, d1, d2 = weight.shape
    return weight.transpose(1, 2, 3, 0).reshape(c * d1, d2 * n)


def from_matrix(matrix: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.floating]:
    """Fold (C·d1, d2·N) back to (N, C, d1, d2)."""
    if len(shape) == 2:
        return matrix
    n, c, d1, d2 = shape
    return matrix.reshape(c, d1, d2, n).transpose(3, 0, 1, 2)
