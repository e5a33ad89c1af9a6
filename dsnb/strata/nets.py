"""A small residual network that reads latents or scans where they lie, as published work does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from monai.losses import FocalLoss
from monai.networks.nets import ResNet

from dsnb.config import Strata
from dsnb.strata import crossval

FOCUS = 2.0  # gamma of the focal loss (Lin et al., arXiv 1708.02002)


@dataclass(frozen=True)
class Net:
    """The network and its training; rate and number of epochs are chosen in an inner fold."""

    loss: Literal["cross-entropy", "focal"] = "cross-entropy"
    widths: tuple[int, ...] = (16, 32, 64, 64)  # channels of its four residual blocks
    stride: int = 1  # of the first convolution: 2 for scans
    rates: tuple[float, ...] = (1e-3, 4e-3)
    epochs: int = 15  # at most
    batch: int = 16
    decay: float = 1e-2


def build(net: Net, channels: int, classes: int) -> ResNet:
    """Return MONAI's ResNet (He et al., arXiv 1512.03385) with a residual block a level."""
    norm = ("group", {"num_groups": 4})  # a mean over the batch says who else is in it
    return ResNet(
        "basic", [1] * 4, list(net.widths), n_input_channels=channels, conv1_t_size=3,
        conv1_t_stride=net.stride, no_max_pool=True, num_classes=classes, norm=norm,
    )  # fmt: skip


def loss_of(name: str, target: torch.Tensor, classes: int) -> torch.nn.Module:
    """Return a loss in which every class weighs the same, whatever its people."""
    weight = len(target) / classes / torch.bincount(target, minlength=classes).float()
    if name == "focal":
        return FocalLoss(gamma=FOCUS, to_onehot_y=True, use_softmax=True, weight=weight)
    return torch.nn.CrossEntropyLoss(weight)


def train(
    inputs: np.ndarray, target: np.ndarray, learn: np.ndarray, judged: np.ndarray, classes: int,
    net: Net, rate: float, epochs: int, seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Return probabilities (M, K) of the judged people after each epoch.

    `inputs` are (N, C, X, Y, Z); `learn` and `judged` are row numbers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(net, inputs.shape[1], classes)
    labels, rng = torch.from_numpy(target.astype(np.int64)), np.random.default_rng(seed)
    criterion = loss_of(net.loss, labels[learn], classes)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=net.decay)
    found = []
    for _ in range(epochs):
        model.train()
        for rows in np.array_split(rng.permutation(learn), -(-len(learn) // net.batch)):
            answer = model(torch.from_numpy(inputs[rows]))
            truth = labels[rows][:, None] if net.loss == "focal" else labels[rows]
            optimiser.zero_grad()
            criterion(answer, truth).backward()
            optimiser.step()
        model.eval()
        with torch.no_grad():
            parts = np.array_split(judged, -(-len(judged) // net.batch))
            told = [model(torch.from_numpy(inputs[rows])).softmax(1) for rows in parts]
        found.append(torch.cat(told).numpy())
    return found


def predict(
    table: pd.DataFrame, target: np.ndarray, settings: Strata, inputs: np.ndarray, net: Net,
    seed: int,
) -> np.ndarray:  # fmt: skip
    """Return out-of-fold probabilities (N, K), on the folds of `crossval.predict`.

    Rate and epochs are the best of a third of the train people, on whom the network did not learn.
    Rows that a model has seen are refused.
    """
    crossval.refuse_seen(table)
    families, classes = table["family"].to_numpy(str), int(target.max()) + 1
    answer = np.empty((len(target), classes))
    for known, test in crossval.split(target, families, settings.outer_folds, settings.seed):
        inner = crossval.split(target[known], families[known], settings.inner_folds, settings.seed)
        learn, check = (known[part] for part in inner[0])
        tried = {}
        for rate in net.rates:
            curve = train(inputs, target, learn, check, classes, net, rate, net.epochs, seed)
            for epoch, told in enumerate(curve, start=1):
                tried[rate, epoch] = crossval.ordinal_auroc(target[check], told)
        rate, epochs = max(tried, key=tried.get)
        answer[test] = train(inputs, target, known, test, classes, net, rate, epochs, seed)[-1]
    return answer
