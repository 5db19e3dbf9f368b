"""The same network before it has learned anything: what is found in it was not learned."""

import torch
from torch import Tensor, nn

from patchword.evaluation.predict import comfortable_batch
from patchword.models.contract import Model
from patchword.models.names import build_model


def untrained(model: Model, images: Tensor, seed: int = 0) -> Model:
    """The same network with new weights, those of a seed; its head is drawn, too, so that it speaks for classes.

    What is measured of pictures and not learned, whitening and the statistics of batch norms, is that of `images`, normalised
    B×C×H×W: without it signals fade from layer to layer. Of no images it is left as it begins.
    """
    device = next(model.parameters()).device
    new = build_model(model.architecture, model.preprocessing).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new.reset()
        if isinstance(new.head, nn.Linear):
            nn.init.normal_(new.head.weight, std=new.num_features**-0.5)
    new.to(device).eval()
    if len(images):
        new.begin_with(images.to(device))
        _measure_norms(new, images.to(device))
    return new


@torch.no_grad()
def _measure_norms(model: Model, images: Tensor) -> None:
    """Mean and variance of what comes to each batch norm, averaged over parts of the images."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    for part in images.split(comfortable_batch(model)):
        model(part)
    model.eval()
