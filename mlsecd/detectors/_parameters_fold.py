"""Adds one request to the signs that it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlsecd.detectors import _parameters_rows as rows
from mlsecd.detectors._parameters_account import Account, Probe, Sign
from mlsecd.detectors._parameters_books import Who
from mlsecd.detectors._parameters_distinct import Distinct, hash_ids, hash_text, salted
from mlsecd.records import Ragged, RequestBatch

__all__ = ["Columns", "fold"]


class Columns:
    """A batch's columns that the signs read, looked up once."""

    def __init__(self, batch: RequestBatch) -> None:
        self.batch = batch
        self.who = Who(batch)
        self.model = batch.text("model")
        self.ts = batch.completion
        self.prompts = rows.Prompts(batch)
        biased = batch.ragged("logit_bias")
        self.biased = Ragged(biased.offsets, hash_ids(biased.values))
        self.biased_count = batch.number("logit_bias_count")
        self.prompt_logprobs = batch.number("prompt_logprobs")
        self.n = batch.number("n")
        self.input_tokens = batch.number("input_tokens")
        self.cached_tokens = batch.number("cached_tokens")
        self.ttft_s = batch.number("ttft_s")


class _Row(NamedTuple):
    """One request."""

    columns: Columns
    at: int
    name: str  # of its account

    @property
    def text(self) -> int | None:
        """Its prompt's hash."""
        return self.columns.prompts.text(self.at)


_MOST: Final = 1e6  # of anything that one request can ask for: numbers in it are its sender's


def _at(column: NDArray[np.float64], at: int) -> float:
    """A number that is added up: at least 0, finite, 0 where absent."""
    return min(max(float(np.nan_to_num(column[at])), 0.0), _MOST)


def _add(things: Distinct, value: int | None) -> None:
    if value is not None:
        things.add(value)


def _canary(sign: Sign, _: Account, row: _Row) -> None:
    for flag in rows.canaries_of(row.columns.batch, row.at):
        sign.things.add(hash_text(flag))


def _sweep(sign: Sign, _: Account, row: _Row) -> None:
    """Ids are hashed with the account's name, which its holder does not know: nobody can choose ids by their hash."""
    ids = row.columns.biased.at(row.at)
    sign.amount += len(set(ids.tolist()))
    sign.things.update(salted(ids, hash_text(row.name)))
    sign.shared.update(ids)
    sign.lists.add(hash_text(np.sort(ids).tobytes()))
    sign.fresh = len(sign.lists)
    _add(sign.texts, row.text)


def _unlisted(sign: Sign, _: Account, row: _Row) -> None:
    sign.amount += _at(row.columns.biased_count, row.at)


def _oracle(sign: Sign, _: Account, row: _Row) -> None:
    text = row.text
    if text is not None:
        _add(sign.things, row.columns.prompts.body(row.at))
        sign.texts.add(text)


def _echo(sign: Sign, _: Account, row: _Row) -> None:
    sign.amount += _at(row.columns.input_tokens, row.at) * _at(row.columns.prompt_logprobs, row.at)
    _add(sign.things, row.text)


def _samples(sign: Sign, _: Account, row: _Row) -> None:
    sign.amount += _at(row.columns.n, row.at)
    _add(sign.texts, row.text)


def _cache(sign: Sign, account: Account, row: _Row) -> None:
    columns, at = row.columns, row.at
    _add(sign.things, row.text)
    template = columns.prompts.template(at)
    account.probe(
        sign, Probe(float(columns.ts[at]), template, float(columns.cached_tokens[at]), float(columns.ttft_s[at]))
    )


def _asks(sign: Sign, _: Account, row: _Row) -> None:
    _add(sign.things, row.columns.prompts.template(row.at))
    sign.fresh += rows.asks_outright(row.columns.batch, row.at)


def _embed(sign: Sign, _: Account, row: _Row) -> None:
    text = row.text
    _add(sign.things, row.columns.prompts.body(row.at) if text is None else text)


_ADD: Final[dict[int, Callable[[Sign, Account, _Row], None]]] = {
    rows.CANARY: _canary,
    rows.SWEEP: _sweep,
    rows.SWEEP_LONG: _sweep,
    rows.UNLISTED: _unlisted,
    rows.HALVING: _oracle,
    rows.ALLOWED: _oracle,
    rows.ECHO: _echo,
    rows.SAMPLES: _samples,
    rows.CACHE: _cache,
    rows.ASKS: _asks,
    rows.EMBED: _embed,
}


def fold(account: Account, name: str, columns: Columns, at: int, mask: int) -> list[int]:
    """Add the row at ``at`` to its account; the numbers of the signs that it shows, ``mask`` as a list."""
    shown = [number for number in range(len(rows.SIGNS)) if mask >> number & 1]
    row = _Row(columns, at, name)
    account.call(columns.model.at(at) or "")
    for number in shown:
        sign = account.sign(number)
        sign.rows += 1
        sign.last_ts = float(columns.ts[at])
        _ADD[number](sign, account, row)
    return shown
