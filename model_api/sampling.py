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
        self._uniform: float | None = None
        self._prompt = prompt
        self._seen: Tensor | None = None

    def uniform(self) -> float:
        """A number in [0, 1), kept off 1 because float32 would round it up to 1.

        It stays the same until `took`: a step that fails and is done again draws what it would have drawn.
        """
        if self._uniform is None:
            self._uniform = min(self._random.random(), 0.999999)
        return self._uniform

    def penalised(self, logits: Tensor) -> Tensor:
        """`logits` [vocab] with those of tokens already seen divided by the penalty (the negative ones multiplied)."""
        penalty = self.sampling.repetition_penalty
        if self._seen is None:
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._seen[torch.tensor(self._prompt, device=logits.device)] = True
        return torch.where(self._seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)

    def took(self, token: int) -> None:
        """Counts `token` as seen, and goes on to the next draw."""
        self._uniform = None
        if self._seen is not None:
            self._seen[token] = True


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row of `logits` [rows, vocab], float32; NOT_FINITE where there is none.

    Nothing has changed when it raises: neither the logits nor what the draws will draw.
    """
    logits = _penalised(logits, draws)
    best, tokens = logits.max(-1)
    finite = torch.isfinite(best)  # NaN wins every max, so one look at the best is a look at all
    drawn = [row for row, draw in enumerate(draws) if not draw.sampling.greedy]
    if drawn:
        picked = [draws[row] for row in drawn]
        uniforms = torch.tensor([[draw.uniform()] for draw in picked], device=logits.device)
        if len(drawn) == len(draws):
            tokens = _draw(logits, [draw.sampling for draw in picked], uniforms)
        else:
            rows = torch.tensor(drawn, device=logits.device)
            tokens[rows] = _draw(logits[rows], [draw.sampling for draw in picked], uniforms)
    chosen: list[int] = torch.where(finite, tokens, NOT_FINITE).tolist()
    for token, draw in zip(chosen, draws, strict=True):
        if token != NOT_FINITE:
            draw.took(token)
    return chosen


def _penalised(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [row for row, draw in enumerate(draws) if draw.sampling.repetition_penalty != 1.0]
    if rows:
        logits = logits.clone()  # a failed step chooses once more from the same logits
        for row in rows:
            logits[row] = draws[row].penalised(logits[row])
    return logits


def _draw(logits: Tensor, samplings: Sequence[Sampling], uniforms: Tensor) -> Tensor:
    """Tokens [rows] by inverting each row's cumulative distribution at its uniform [rows, 1].

    The distribution is transformers': temperature, then top_k (all tokens as likely as the k-th stay), then top_p of
    what is left. How a row is drawn depends on its own parameters alone, so that neighbours cannot change its text.
    """
    scaled, vocab = logits, logits.shape[-1]
    if any(sampling.temperature != 1.0 for sampling in samplings):
        scaled = logits / torch.tensor([[s.temperature] for s in samplings], device=logits.device)
    widths = [_first_width(sampling, vocab) for sampling in samplings]
    if len(set(widths)) == 1:
        return _draw_alike(scaled, samplings, uniforms, widths[0])
    tokens = torch.empty(len(samplings), dtype=torch.int64, device=logits.device)
    for width in set(widths):
        group = [row for row, wanted in enumerate(widths) if wanted == width]
        rows = torch.tensor(group, device=logits.device)
        tokens[rows] = _draw_alike(scaled[rows], [samplings[row] for row in group], uniforms[rows], width)
    return tokens


def _first_width(sampling: Sampling, vocab: int) -> int:
    """How many of the most likely tokens have to be in order for a draw, at first sight; 0: none."""
    width = CANDIDATES
    if _limit(sampling, vocab) < vocab:
        while width < 2 * sampling.top_k:  # twice, for those that are as likely as the k-th
            width *= 4
    elif sampling.top_p >= 1:
        return 0
    return min(width, vocab)


def _limit(sampling: Sampling, vocab: int) -> int:
    return min(sampling.top_k or vocab, vocab)


def _draw_alike(scaled: Tensor, samplings: Sequence[Sampling], uniforms: Tensor, width: int) -> Tensor:
    """Tokens [rows] of rows that need the same number of tokens in order; 0 draws from all, in any order."""
    if width:
        return _draw_in_order(scaled, samplings, uniforms, width)
    cumulative = scaled.softmax(-1).cumsum_(-1)
    place = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return place.clamp_(max=scaled.shape[-1] - 1).squeeze(-1)


def _draw_in_order(scaled: Tensor, samplings: Sequence[Sampling], uniforms: Tensor, width: int) -> Tensor:
    """Tokens [rows], chosen among each row's `width` most likely; among more where a row's choice reaches further."""
    device, vocab = scaled.device, scaled.shape[-1]
    values, index = scaled.topk(width) if width < vocab else scaled.sort(-1, descending=True)
    limits = [_limit(sampling, vocab) for sampling in samplings]
    limited = torch.tensor([[limit < vocab] for limit in limits], device=device)
    last = values.gather(-1, torch.tensor([[min(limit, width) - 1] for limit in limits], device=device))
    top_p = torch.tensor([[s.top_p if s.top_p < 1 else 2.0] for s in samplings], device=device)
    within = values.masked_fill(limited & (values < last), -torch.inf)
    total = within.logsumexp(-1, keepdim=True)
    if width < vocab and max(limits) == vocab:  # rows without top_k: their top_p is a share of all tokens
        total = torch.where(limited, total, scaled.logsumexp(-1, keepdim=True))
    weights = (within - total).exp()
    reached = weights.cumsum(-1)
    kept = reached - weights < top_p
    kept[:, 0] = True  # the most likely token, whatever top_p says
    cumulative = (weights * kept).cumsum(-1)
    place = (cumulative <= uniforms * cumulative[:, -1:]).sum(-1, keepdim=True).clamp_(max=width - 1)
    tokens = index.gather(-1, place).squeeze(-1)
    if width < vocab:
        beyond = torch.where(limited, values[:, -1:] >= last, reached[:, -1:] < top_p)
        short = [row for row, is_short in enumerate(beyond.squeeze(-1).tolist()) if is_short]
        if short:
            rows = torch.tensor(short, device=device)
            more = min(16 * width, vocab)
            tokens[rows] = _draw_in_order(scaled[rows], [samplings[row] for row in short], uniforms[rows], more)
    return tokens
