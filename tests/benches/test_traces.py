from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.traces import __main__ as making
from bench.traces import clients, scenarios, writer
from bench.traces.attacks import ATTACKS, attack
from bench.traces.clients import KINDS, Sent, customer
from bench.traces.digits import Digits
from bench.traces.shapes import Shapes
from bench.traces.tabular import CHOICES, NUMBERS, Tabular
from bench.traces.worlds import World
from mlsecd.jsonlines import Decoder
from mlsecd.meters import Meters
from mlsecd.records import RequestBatch


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def digits() -> World:
    return Digits(rng())


@pytest.fixture(scope="module")
def credit() -> World:
    return Tabular(rng())


@pytest.fixture(scope="module")
def badges() -> World:
    return Shapes(rng())


@pytest.fixture(params=["digits", "credit", "badges"])
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.getfixturevalue(request.param)
    return made


def test_victims_know_their_own_inputs_better_than_noise(world: World) -> None:
    sure = world.answer(world.ordinary(rng(), 500)).scores[:, 0].mean()
    assert sure > 0.7
    labels = np.bincount(world.label(world.ordinary(rng(), 2_000)), minlength=world.classes)
    assert (labels > 0).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_valid_inputs_by_its_seed(name: str, world: World) -> None:
    x, again, other = attack(name, world, rng(1), 90), attack(name, world, rng(1), 90), attack(name, world, rng(2), 90)
    assert x.shape == (90, len(world.ordinary(rng(), 1)[0]))
    assert np.isfinite(x).all()
    np.testing.assert_array_equal(x, again)
    assert not np.array_equal(x, other)
    assert (x >= np.asarray(world.low) - 1e-4).all()
    assert (x <= np.asarray(world.high) + 1e-4).all()


def test_choices_stay_choices(credit: World) -> None:
    for name in ("jbda", "boundary", "simba", "dfme", "mixup"):
        x = attack(name, credit, rng(3), 60)
        start = NUMBERS
        for size in CHOICES:
            group = x[:, start : start + size]
            start += size
            if name == "dfme":  # it asks through the oracle, which makes rows valid as all others do
                assert set(np.unique(group)) <= {0.0, 1.0}
            np.testing.assert_allclose(group.sum(axis=1), 1.0)


def test_a_walk_stays_near_and_a_thief_of_noise_does_not(badges: World) -> None:
    def step(name: str) -> float:
        x = attack(name, badges, rng(4), 200)
        return float(np.median(np.linalg.norm(np.diff(x, axis=0), axis=1)))

    assert step("simba") < 0.2 * step("knockoff")
    assert step("nes") < 0.5 * step("knockoff")


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_client_sends_what_its_kind_says(kind: str, badges: World) -> None:
    made = customer(badges, rng(5), "c", 200, start=1_000.0, span=86_400.0, kind=kind)
    distinct = len(np.unique(made.x, axis=0))
    assert made.x.shape[0] == made.ts.shape[0] == 200
    assert not made.attack
    assert (np.diff(made.ts) >= 0).all()
    assert (made.ts >= 1_000.0).all()
    assert (made.ts <= 1_000.0 + 86_400.0 + 1).all()
    if kind == "poller":
        assert distinct < 40
    elif kind in {"retry", "batch"}:
        assert 60 < distinct < 190
    elif kind != "whatif":  # of which some change nothing
        assert distinct == 200


def test_campaigns_hold_what_their_name_says(badges: World) -> None:
    found = {one.name: one for one in scenarios.scenarios()}
    sybil = found["sybil50_knockoff"].make(badges, rng(6))
    hydra = found["hydra20_knockoff"].make(badges, rng(6))
    near = found["sybil24_knockoff"].make(badges, rng(6))
    assert [(len(sybil), len(sybil[0].ts)), (len(hydra), len(hydra[0].ts))] == [(50, 30), (20, 60)]
    assert len({one.network.rpartition(".")[0] for one in near}) == 3
    assert len({one.network for one in sybil}) > 40
    theft = {row.tobytes() for row in ATTACKS["knockoff"](badges, rng(6), 240)}
    assert sum(row.tobytes() in theft for row in hydra[3].x) == 12


def test_every_scenario_of_attack_is_made_of_attackers_and_no_other_is() -> None:
    for one in scenarios.scenarios():
        assert (one.family in {"fit", "benign"}) == (one.name.startswith("benign") or one.name == "reference")
        assert set(one.among) <= {"benign_a", "benign_b", "benign_town"}
    assert {one.attack for one in scenarios.scenarios() if one.family == "single"} == set(ATTACKS)


def decoded(path: Path) -> RequestBatch:
    meters = Meters()
    parts = list(Decoder(meters, "test").decode(gzip.decompress(path.read_bytes())))
    assert not meters.counters().get("mlsecd_dropped_total")
    return RequestBatch.concat(parts)  # type: ignore[arg-type]


def test_records_come_back_as_they_were_sent_and_the_same_bytes_again(badges: World, tmp_path: Path) -> None:
    def accounts() -> list[Sent]:
        made = clients.population(badges, rng(7), "c", 6, start=1_000.0, span=3_600.0)
        thief = attack("simba", badges, rng(8), 40)
        return [*made, Sent("thief", "simba", thief, 1_500.0 + np.arange(40), "192.0.2.1", attack=True, campaign=3)]

    sent = accounts()
    count = writer.write(tmp_path / "a", "one", badges, sent)
    writer.write(tmp_path / "b", "one", badges, accounts())
    batch = decoded(tmp_path / "a" / "one.jsonl.gz")
    assert (tmp_path / "a" / "one.jsonl.gz").read_bytes() == (tmp_path / "b" / "one.jsonl.gz").read_bytes()
    assert len(batch) == count == sum(len(one.ts) for one in sent)
    assert (np.diff(batch.ts) >= 0).all()
    theirs = np.flatnonzero(np.array([batch.text("client").at(row) == "thief" for row in range(count)]))
    want = badges.answer(sent[-1].x)
    np.testing.assert_allclose(batch.ragged("features").matrix(theirs, 32), want.features, atol=1e-6)
    np.testing.assert_allclose(batch.ragged("input_features").matrix(theirs, 32), want.input_features, atol=1e-5)
    truth = json.loads((tmp_path / "a" / "one.truth.json").read_text())
    assert truth["thief"] == {"attack": True, "kind": "simba", "campaign": 3}
    assert sum(one["attack"] for one in truth.values()) == 1


def test_exact_retries_have_one_body_hash(badges: World) -> None:
    made = customer(badges, rng(9), "c", 100, start=0.0, span=3_600.0, kind="retry")
    batch = writer.batch_of(badges, [made])
    assert len(set(batch.text("body_hash").codes.tolist())) == len(np.unique(made.x, axis=0)) < 100


def test_the_command_writes_a_part_and_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["traces", "--out", str(tmp_path), "--victim", "credit", "--part", "tune", "--only", "sybil20_knockoff"]
    monkeypatch.setattr("sys.argv", [*given, "--victim", "text"])
    assert making.main() == 0
    folder = tmp_path / "credit" / "tune"
    plan: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    assert plan["scenarios"]["sybil20_knockoff"]["with"] == ["benign_a", "benign_b", "benign_town"]
    assert len(plan["scenarios"]["hydra50_dfme"]["mixtures"]) == 3
    assert len(decoded(folder / "sybil20_knockoff.jsonl.gz")) == 600
    assert not (tmp_path / "text").exists()  # it has no prompts to draw from, and says so
