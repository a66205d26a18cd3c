from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import beta
from support import Case, fold_of, requests

from mlsecd.detectors._parameters_distinct import Distinct, hash_ids, hash_text
from mlsecd.detectors.extraction_parameters import DETECTOR, ExtractionParameters, Params
from mlsecd.errors import StateError
from mlsecd.kernels import cpu
from mlsecd.records import Finding, RequestBatch, Severity


def make(**params: Any) -> ExtractionParameters:
    return DETECTOR(Params(**params), cpu)


def sent(count: int, /, *, start: float = 0.0, step: float = 1.0, texts: Any = 0, **columns: Any) -> RequestBatch:
    """Requests of one client; ``texts``: the number of each one's text, or one for all."""
    numbers = np.broadcast_to(np.asarray(texts), count)
    given = {
        "client": "k-1",
        "body_hash": [f"{start}-{i}" for i in range(count)],
        "sketch": [[int(number), 7, 9] for number in numbers],
        "template": [f"t{number}" for number in numbers],
        "input_tokens": 40.0,
        "output_tokens": 1.0,
        "max_tokens": 1.0,
        **columns,
    }
    return requests(start + step * np.arange(count), **{name: one for name, one in given.items() if one is not None})


def sweep(n: int, wide: int = 4, first: int = 0, **columns: Any) -> RequestBatch:
    return sent(
        n, logit_bias=[range(first + wide * i, first + wide * (i + 1)) for i in range(n)], logprobs=5.0, **columns
    )


def told(detector: ExtractionParameters, *batches: RequestBatch) -> list[Finding]:
    return [finding for one in batches for finding in detector.observe(one)]


def test_a_sweep_warns_at_64_tokens_and_pages_at_256() -> None:
    first, second = told(make(vocabulary=1_000), sweep(70))[:2]
    assert (first.severity, first.ts, first.score, first.threshold) == (Severity.MEDIUM, 15.0, 64, 64)
    assert (second.severity, second.ts, second.score, second.threshold) == (Severity.HIGH, 63.0, 256, 256)
    assert "25.6% of the vocabulary's 1,000" in second.reason
    assert second.evidence["sign"] == "sweep"
    assert second.atlas == ("AML.T0024.002",)


def test_a_sweep_counts_over_the_models_that_an_account_hops_between() -> None:
    found = told(make(), sweep(100, model=[f"alias{i % 5}" for i in range(100)]))
    assert found[-1].severity is Severity.HIGH
    assert found[-1].evidence["models"] == [f"alias{i}" for i in range(5)]


def test_a_list_of_old_ids_around_new_ones_hides_nothing() -> None:
    ids = [[*range(600), 1_000 + 2 * i, 1_001 + 2 * i] for i in range(40)]
    found = told(make(), sent(40, logit_bias=ids, logprobs=5.0))
    assert [found[0].severity, found[0].ts] == [Severity.MEDIUM, 7.0]
    assert [found[1].severity, found[1].ts] == [Severity.HIGH, 15.0]


def test_a_request_with_the_whole_vocabulary_first_hides_nothing() -> None:
    ids = [range(32_000), *(range(4 * i, 4 * i + 4) for i in range(39))]
    assert Severity.HIGH in {finding.severity for finding in told(make(), sent(40, logit_bias=ids, logprobs=5.0))}


def test_a_few_very_wide_requests_page() -> None:
    assert told(make(), sweep(6, wide=1_500))[0].severity is Severity.HIGH


def test_going_round_many_texts_only_delays() -> None:
    """The same 400 ids for each of ten texts, four a request: what a projection needs of each text."""
    order = [(part, text) for part in range(100) for text in range(10)]
    ids = [range(4 * part, 4 * part + 4) for part, _ in order]
    found = told(make(), sent(1_000, logit_bias=ids, logprobs=5.0, texts=[text for _, text in order]))
    assert Severity.HIGH in {finding.severity for finding in found}


def test_without_texts_a_sweep_warns_and_says_why() -> None:
    found = told(make(), sweep(100, sketch=None))
    assert {finding.severity for finding in found} == {Severity.MEDIUM}
    assert "a test with choices would look the same" in found[0].reason


def test_a_client_cannot_pass_for_an_aggregators_user() -> None:
    found = told(make(aggregators=("k-1",)), sweep(100, client="k-1/u7"), sweep(100, user="u7"))
    assert [finding.evidence.get("client") for finding in found] == [None, None, "k-1", "k-1"]


def test_repeats_of_one_body_hide_nothing() -> None:
    assert told(make(), sweep(64, body_hash="same"))[-1].severity is Severity.HIGH


def test_an_attacker_who_dilutes_a_sweep_still_pages() -> None:
    """Forty requests for each four ids."""
    ids = [[i // 40 * 4 + j for j in range(4)] for i in range(2_560)]
    found = told(make(), sent(2_560, logit_bias=ids, logprobs=1.0))
    paged = next(finding for finding in found if finding.severity is Severity.HIGH)
    assert (found[0].score, paged.score) == (64, 256)


def test_ids_are_counted_although_the_sketch_is_full() -> None:
    found = told(make(), sweep(2_000))
    counted = found[-1].evidence["distinct_tokens"]
    assert 0.8 * 4 * found[-1].evidence["requests"] < counted < 1.25 * 4 * found[-1].evidence["requests"]


HALVES = [str(i // 2) for i in range(300)]
CHOICES = [range(5 * i, 5 * i + 5) for i in range(2_000)]
NINES = [range(9 * i, 9 * i + 9) for i in range(300)]
NINE = [str(i // 9) for i in range(2_000)]


@pytest.mark.parametrize(
    "honest",
    [
        pytest.param({"logit_bias": [[1, 2, 3, 4]] * 2_000, "logprobs": 5.0}, id="four labels"),
        pytest.param({"logit_bias": [range(300)] * 500, "logprobs": 5.0, "count": 500}, id="a long list of labels"),
        pytest.param(
            {"logit_bias": [range(i % 4 * 90, i % 4 * 90 + 90) for i in range(2_000)], "logprobs": 1.0}, id="4 lists"
        ),
        pytest.param({"logit_bias": CHOICES, "logprobs": 5.0, "texts": range(2_000)}, id="a test with choices"),
        pytest.param({"logprobs": 20.0, "texts": range(2_000)}, id="odds of a label"),
        pytest.param({"logprobs": 20.0, "max_tokens": None, "output_tokens": 300.0}, id="odds of long answers"),
        pytest.param(
            {"logit_bias": [[i] for i in range(2_000)], "max_tokens": None, "output_tokens": 300.0}, id="banned words"
        ),
        pytest.param({"logit_bias": [[1, 2]] * 2_000, "texts": range(2_000)}, id="a classifier by bias"),
        pytest.param({"allowed_tokens": 2.0, "texts": range(2_000)}, id="a classifier by allowed tokens"),
        pytest.param({"allowed_tokens": 50.0, "max_tokens": 200.0}, id="a grammar"),
        pytest.param({"prompt_logprobs": 0.0, "texts": range(2_000)}, id="perplexity"),
        pytest.param({"n": 20.0, "texts": range(2_000)}, id="votes on many texts"),
        pytest.param({"n": 128.0, "max_tokens": 500.0}, id="long samples"),
        pytest.param({"body_hash": "ping"}, id="a health check"),
        pytest.param(
            {"texts": range(2_000), "cached_tokens": 32.0, "template": "form"}, id="a batch with its form cached"
        ),
        pytest.param(
            {"body_hash": NINE, "texts": [int(i) for i in NINE], "logit_bias": [[5]] * 2_000}, id="retries, nine a text"
        ),
        pytest.param({"route": "/v1/embeddings", "texts": range(2_000)}, id="an index"),
        pytest.param(
            {"flags": [["system_prompt"]] * 2_000, "template": "form", "max_tokens": None}, id="a form's words"
        ),
    ],
)
def test_honest_users_of_the_same_parameters_are_left_alone(honest: dict[str, Any]) -> None:
    assert told(make(), sent(honest.get("count", 2_000), **{k: v for k, v in honest.items() if k != "count"})) == []


@pytest.mark.parametrize(
    ("attack", "sign", "severity", "at"),
    [
        ({"logit_bias": [[i // 10] for i in range(300)]}, "halving", Severity.MEDIUM, 64),
        ({"allowed_tokens": 2.0}, "allowed", Severity.MEDIUM, 64),
        ({"prompt_logprobs": 5.0, "texts": range(300)}, "echo", Severity.MEDIUM, 100),
        ({"n": 128.0}, "samples", Severity.MEDIUM, 40),
        ({"texts": range(300), "template": "base", "cached_tokens": [0, 160] * 150}, "cache", Severity.MEDIUM, 100),
        ({"texts": range(300), "ttft_s": [0.02, 0.09, 0.02] * 100}, "cache", Severity.LOW, 100),
        ({"texts": range(300), "template": "base", "cached_tokens": [32, 160] * 150}, "cache", Severity.LOW, 100),
        ({"flags": [["system_prompt"]] * 300, "template": HALVES}, "asks", Severity.LOW, 15),
        ({"flags": [["system_prompt", "repeat_above"]] * 300, "template": HALVES}, "asks", Severity.MEDIUM, 15),
        ({"flags": [[]] * 5 + [["canary:1"]] * 295, "max_tokens": 300.0}, "canary", Severity.HIGH, 6),
        ({"logit_bias_count": 60.0, "logprobs": 5.0}, "unlisted", Severity.LOW, 64),
        (
            {"logit_bias": NINES, "logprobs": 2.0, "max_tokens": 90.0},
            "sweep_long",
            Severity.MEDIUM,
            128,
        ),  # 1,024 ids by sketch
    ],
)
def test_each_sign_tells_exactly_when_it_is_complete(
    attack: dict[str, Any], sign: str, severity: Severity, at: int
) -> None:
    first = told(make(), sent(300, **attack))[0]
    assert (first.evidence["sign"], first.severity, round(first.ts) + 1) == (sign, severity, at)
    assert first.reason
    assert first.score >= first.threshold


def test_a_volume_of_embeddings_is_a_ticket() -> None:
    found = told(make(embedding_inputs=500), sent(900, route="/v1/embeddings", texts=range(900)))
    assert [found[0].severity, found[0].evidence["sign"]] == [Severity.LOW, "embed"]
    assert 400 < found[0].ts < 620  # counted by a sketch of 128


def test_a_canary_that_the_client_sends_itself_is_its_own() -> None:
    flagged = sent(5, flags=[["canary:1"]] * 5)
    assert told(make(canary_holders=("k-1",)), flagged) == []
    found = told(make(), flagged)[0]
    assert (found.atlas, found.owasp) == (("AML.T0056", "AML.T0069.002"), ("LLM07:2025",))


def test_without_a_sketch_of_the_text_a_search_is_not_judged_and_counted() -> None:
    detector = make()
    assert told(detector, sent(300, allowed_tokens=2.0, sketch=None)) == []
    assert detector.standing().gauges["unsketched_rows"] == 300


def test_an_aggregator_is_judged_by_its_users() -> None:
    mixed = sweep(320, user=[f"u{i % 10}" for i in range(320)], wide=2)
    assert told(make(), mixed)[-1].subject == "k-1"
    found = told(make(aggregators=("k-1",)), mixed)
    assert {finding.subject for finding in found} == {f"k-1/u{i}" for i in range(10)}
    assert found[0].evidence["client"] == "k-1"
    assert {finding.severity for finding in found} == {Severity.MEDIUM}


def test_a_sweep_that_many_share_names_them_all() -> None:
    whole = RequestBatch.concat([sweep(7, first=1_000 * i, start=0.01 * i, client=f"k-{i}") for i in range(20)])
    fold = fold_of(make())
    assert fold.push([whole.take(np.argsort(whole.ts, kind="stable"))]) == []
    (line,) = fold.push([requests([30.0, 60.0], client="k-other")])
    assert (line.subject_kind, line.subject, line.severity) == ("model", "m", Severity.HIGH)
    assert line.evidence["clients"] == sorted(f"k-{i}" for i in range(20))
    assert line.evidence["distinct_tokens"] >= 256


def test_accounts_with_the_same_fixed_labels_share_no_sweep() -> None:
    fold = fold_of(make())
    lists = [list(range(30 * (i % 15), 30 * (i % 15) + 30)) for i in range(40)]
    whole = RequestBatch.concat(
        [sent(20, logit_bias=[lists[i]] * 20, logprobs=3.0, client=f"k-{i}") for i in range(40)]
    )
    fold.push([whole.take(np.argsort(whole.ts, kind="stable"))])
    assert fold.push([requests([60.0, 90.0], client="k-other")]) == []


def test_many_who_turn_to_a_new_model_are_context() -> None:
    fold = fold_of(make(pivot_clients=10))
    names = [f"k-{i}" for i in range(30)]
    fold.push([requests(np.arange(30.0), client=names)])
    fold.push([requests([4_000.0 + i for i in range(12)], client=names[:12], model="new")])
    (line,) = fold.push([requests([4_100.0], client="newcomer", model="new")])
    assert (line.severity, line.subject) == (Severity.INFO, "new")
    assert line.evidence["accounts"] in {10, 12}
    assert line.evidence["half_within_seconds"] <= 6.0


def test_a_flood_of_accounts_does_not_push_out_a_suspect() -> None:
    detector = make(max_clients=50, max_suspects=10)
    told(detector, sweep(20, step=0.1))
    flood = sent(5_000, start=100.0, client=[f"f{i}" for i in range(5_000)], allowed_tokens=2.0, texts=range(5_000))
    told(detector, flood)
    assert detector.standing().gauges["evicted_clients"] > 4_000
    assert told(detector, sweep(50, first=10_000, start=9_000.0))[-1].severity is Severity.HIGH


def test_rows_without_a_client_are_counted() -> None:
    detector = make()
    assert told(detector, sweep(100, client=None)) == []
    assert detector.standing().gauges["unattributed_rows"] == 100


def test_an_epoch_begins_afresh() -> None:
    detector = make(epoch_seconds=3_600.0)
    assert told(detector, sweep(40)) != []
    assert told(detector, sweep(15, first=9_000, start=7_200.0)) == []


def test_a_snapshot_of_other_shape_is_refused() -> None:
    detector = make()
    detector.observe(sweep(10))
    account = detector._books.items()[0][1]
    account.signs[1].things.values[0] = account.signs[1].things.values[1]
    with pytest.raises(StateError, match="damaged"):
        make().restore(detector.snapshot())


@given(st.lists(st.integers(0, 3_000)), st.lists(st.integers(0, 3_000)))
@example(list(range(16)), [])
@example(list(range(16)), [17])
def test_sketches_count_exactly_up_to_k_and_merge(some: list[int], others: list[int]) -> None:
    one, other, both = Distinct(16), Distinct(16), Distinct(16)
    one.update(hash_ids(np.array(some, np.int64)))
    for value in others:
        other.add(int(hash_ids(np.array([value]))[0]))
    both.update(hash_ids(np.array(some + others, np.int64)))
    assert Distinct.union(16, [one, other]).values == both.values
    assert len(set(some)) > 16 or len(one) == len(set(some))
    assert Distinct.load(16, one.dump()).values == one.values


def test_a_sketch_errs_by_a_few_percent() -> None:
    errors = []
    for seed in range(40):
        sketch = Distinct(128)
        sketch.update(hash_ids(np.arange(seed * 10_000, seed * 10_000 + 5_000)))
        errors.append(len(sketch) / 5_000 - 1)
    assert abs(np.mean(errors)) < 0.05
    assert np.std(errors) < 0.15  # 1 / sqrt(126) = 0.09


def ordinary(rng: np.random.Generator, clients: int) -> RequestBatch:
    """Honest users of every parameter that attacks use, each with habits of its own."""
    parts = []
    for i in range(clients):
        n = int(np.clip(60 * rng.lognormal(0, 1), 20, 1_000))
        texts = rng.integers(0, 10**9, n)
        labels = rng.integers(0, 32_000, int(rng.integers(2, 60)))
        habits: list[dict[str, Any]] = [
            {"max_tokens": 256.0, "output_tokens": rng.lognormal(5, 0.6, n).round()},
            {"logit_bias": [labels] * n, "logprobs": 5.0},
            {"logit_bias": [labels] * n},
            {"logprobs": float(rng.choice([1, 5, 20])), "max_tokens": float(rng.choice([1, 5, 400]))},
            {"allowed_tokens": float(rng.integers(2, 9))},
            {"prompt_logprobs": float(rng.integers(0, 2))},
            {"n": float(rng.choice([2, 8, 20])), "temperature": 1.0},
            {"texts": i, "body_hash": f"ping{i}", "ttft_s": rng.lognormal(-4, 0.4, n)},
            {"template": f"form{i}", "cached_tokens": 160.0, "ttft_s": rng.lognormal(-4, 0.4, n)},
            {"texts": np.repeat(texts, 9)[:n], "body_hash": [str(t) for t in np.repeat(texts, 9)[:n]]},
            {"route": "/v1/embeddings", "output_tokens": 0.0, "max_tokens": None},
        ]
        habit = {"texts": texts, **habits[i % len(habits)]}
        step = float(rng.choice([0.3, 3.0, 30.0]))
        parts.append(sent(n, client=f"k-{i}", start=float(rng.integers(0, 86_400)), step=step, **habit))
    whole = RequestBatch.concat(parts)
    return whole.take(np.argsort(whole.ts, kind="stable"))


def test_no_honest_account_is_ever_flagged() -> None:
    """198 accounts, none flagged: at most 1.9 % [95 %, Clopper-Pearson]. The rules have no rate; this bounds it."""
    found = told(make(), ordinary(np.random.default_rng(20_261_125), 198))
    assert collections.Counter(finding.evidence["sign"] for finding in found) == {}
    assert beta.ppf(0.975, 1, 198) < 0.019


def conformance() -> Case:
    rng = np.random.default_rng(5)
    parts = [
        sweep(80, client="k-sweep", step=0.5, user=[f"u{i % 3}" for i in range(80)]),
        *(sweep(8, first=2_000 * i, start=0.3 * i, client=f"k-part{i}") for i in range(9)),
        sent(90, client="k-search", allowed_tokens=2.0, start=3.0),
        sent(
            120,
            client="k-cache",
            texts=range(120),
            template="base",
            cached_tokens=[0, 160] * 60,
            ttft_s=[0.1, 0.02] * 60,
        ),
        sent(12, client="k-leak", flags=[["canary:1"], ["system_prompt"]] * 6, start=40.0),
        sent(60, client=[f"k-{i % 30}" for i in range(60)], start=20.0, synthetic=1),
    ]
    whole = RequestBatch.concat(parts)
    return Case(
        detector=DETECTOR,
        params=Params(aggregators=("k-sweep",), pivot_clients=5, sweep_tokens=100, sweep_suspect_tokens=32),
        records=[whole.take(np.argsort(whole.ts + rng.uniform(0, 1e-6, len(whole)), kind="stable"))],
        limited=Params(max_clients=50, max_suspects=20),
        flood=lambda n: [sweep(n, client=[f"f{i}" for i in range(n)], step=3.0)],
    )


def test_text_hashes_do_not_run_together() -> None:
    assert hash_text("a", "b") != hash_text("ab", "")
