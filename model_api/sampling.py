"""The next token of every row, each by its own temperature, top_p, top_k, repetition penalty and seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from model_api.request import Sampling

CANDIDATES = 512  # the most likely tokens looked at first: a full sort of 150,000 costs more than a small model's step
NOT_FINITE = -1  # in place of a token: the row's logits hold NaN or infinity


class Draw:
    """One request's own randomness and the tokens it has seen: what makes its text independent of its neighbours."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self.sampling = sampling
        self._random = random.Random(sampling.seed)
        self._prompt = prompt
        self._seen: Tensor | None = None

    def uniform(self) -> float:
        """A number in [0, 1), kept off 1 because float32 would round it up to 1."""
        return min(self._random.random(), 0.999999)

    def penalise(self, logits: Tensor) -> None:
        """Divides, in place, the logits [vocab] of tokens already seen (multiplies the negative ones)."""
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._seen[torch.tensor(self._prompt, device=logits.device)] = True
        logits.copy_(torch.where(self._seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits))

    def saw(self, token: int) -> None:
        """Counts `token` as seen from now on."""
        if self._seen is not None:
            self._seen[token] = True


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row of `logits` [rows, vocab], float32 (changed in place); NOT_FINITE where there is none."""
    for row, draw in enumerate(draws):
        draw.penalise(logits[row])
    best, tokens = logits.max(-1)
    finite = torch.isfinite(best)  # NaN wins every max, so one look at the best is a look at all
    drawn = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    if drawn:
        picked = [draws[row] for row in drawn]
        # The uniforms are drawn here, once a step and row, whatever branch is taken: same seed, same text.
        uniforms = torch.tensor([[draw.uniform()] for draw in picked], device=logits.device)
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _draw(logits[rows], [draw.sampling for draw in picked], uniforms)
    chosen: list[int] = torch.where(finite, tokens, NOT_FINITE).tolist()
    for token, draw in zip(chosen, draws, strict=True):
        if token != NOT_FINITE:
            draw.saw(token)
    return chosen


def _draw(logits: Tensor, samplings: Sequence[Sampling], uniforms: Tensor) -> Tensor:
    """Tokens [rows] by inverting each row's cumulative distribution at its uniform [rows, 1]."""
    device = logits.device
    vocab = logits.shape[-1]
    scaled = logits / torch.tensor([[s.temperature] for s in samplings], device=device)
    total = scaled.logsumexp(-1, keepdim=True)
    top_p = torch.tensor([[s.top_p] for s in samplings], device=device)
    top_k = torch.tensor([[s.top_k or vocab] for s in samplings], device=device)
    # In order of likelihood: of the first few hundred, or of all where a row's choice may reach beyond them.
    width = min(vocab, CANDIDATES)
    values, index = scaled.topk(width)
    if width < vocab:
        mass = (values - total).exp().sum(-1, keepdim=True)
        if bool(((mass < top_p) & (top_k > width)).any()):
            width = vocab
            values, index = scaled.sort(-1, descending=True)
    weights = (values - total).exp()
    weights = weights * (torch.arange(width, device=device) < top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    kept = weights.cumsum(-1) - weights < top_p
    kept[:, 0] = True  # the most likely token, whatever top_p says
    weights = weights * kept
    cumulative = weights.cumsum(-1)
    place = (cumulative <= uniforms * cumulative[:, -1:]).sum(-1, keepdim=True).clamp_(max=width - 1)
    return index.gather(-1, place).squeeze(-1)
