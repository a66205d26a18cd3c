"""One drift task by one library, in a process of its own: prints a JSON line. Needs numpy and that library only.

Usage: PYTHON bench/drift_peers.py LIBRARY TASK ARRAYS.npz. `bench.drift` calls it with each peer's interpreter, because
alibi-detect and frouros pin numpy releases that mlsecd cannot run with.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np


def alibi_mmd(arrays: Any, permutations: int) -> dict[str, float]:
    """alibi-detect's MMDDrift on torch, one thread."""
    import torch  # noqa: PLC0415
    from alibi_detect.cd import MMDDrift  # noqa: PLC0415

    torch.set_num_threads(1)
    detector = MMDDrift(arrays["reference"], backend="pytorch", n_permutations=permutations)
    detector.predict(arrays["window"][:50])  # what is made once is not counted
    began = time.process_time()
    found = detector.predict(arrays["window"])["data"]
    return {"seconds": time.process_time() - began, "p": float(found["p_val"]), "mmd2": float(found["distance"])}


def frouros_mmd(arrays: Any, permutations: int) -> dict[str, float]:
    """Frouros' MMD with its permutation test, one job."""
    from frouros.callbacks import PermutationTestDistanceBased  # noqa: PLC0415
    from frouros.detectors.data_drift import MMD  # noqa: PLC0415

    callback = PermutationTestDistanceBased(
        num_permutations=permutations, num_jobs=1, random_state=1, name="permutation"
    )
    detector = MMD(callbacks=[callback])
    detector.fit(X=arrays["reference"].astype(float))
    began = _cpu()  # its permutations run in a child
    found, logs = detector.compare(X=arrays["window"].astype(float))
    return {"seconds": _cpu() - began, "p": float(logs["permutation"]["p_value"]), "mmd2": float(found[0])}


def _cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def river_stream(arrays: Any, name: str) -> dict[str, float]:
    """A river detector on a stream, value by value: its only way."""
    from river import drift  # noqa: PLC0415

    detector = {"adwin": drift.ADWIN, "page_hinkley": drift.PageHinkley}[name]()
    values = arrays["stream"].tolist()
    alarms = 0
    began = time.process_time()
    for value in values:
        detector.update(value)
        alarms += detector.drift_detected
    return {"seconds": time.process_time() - began, "alarms": alarms}


def scipy_days(arrays: Any, _: str) -> dict[str, float]:
    """Each minute's 100 values against the reference by Kolmogorov & Smirnov, p < .05."""
    from scipy.stats import ks_2samp  # noqa: PLC0415

    began = time.process_time()
    minutes = arrays["stream"].reshape(-1, 100)
    alarms = sum(ks_2samp(arrays["long"], minute).pvalue < 0.05 for minute in minutes)
    return {"seconds": time.process_time() - began, "alarms": int(alarms)}


def own(arrays: Any, task: str) -> dict[str, float]:
    """Mlsecd's kernels; compiled before, as in a daemon that was warmed up."""
    from mlsecd.kernels import select  # noqa: PLC0415

    kernels = select("cpu")
    if task.startswith("mmd"):
        reference, window = arrays["reference"], arrays["window"]
        gammas = kernels.drift_mmd_widths(reference)
        draw = np.random.Generator(np.random.Philox(1))
        kernels.drift_mmd(reference[:50], window[:50], gammas, draw, 10)
        began = time.process_time()
        found = kernels.drift_mmd(reference, window, gammas, draw, int(task[3:]), stop=sys.maxsize)
        return {"seconds": time.process_time() - began, "p": found.p, "mmd2": found.mmd2, "drawn": found.drawn}
    return _own_stream(kernels, arrays)


def _own_stream(kernels: Any, arrays: Any) -> dict[str, float]:
    from mlsecd.detectors._drift_freeze import freeze_columns  # noqa: PLC0415
    from mlsecd.kernels import drift_layout as at  # noqa: PLC0415

    times = np.arange(len(arrays["long"])) * 0.6
    reference = freeze_columns(times, arrays["long"].astype(np.float32)[:, None], ("stream",), 1.0, kernels)
    values = arrays["stream"].astype(np.float64)[:, None]
    stamps = times[-1] + np.arange(len(values)) * 0.6
    state = np.zeros((1, at.STREAM)), np.zeros((1, reference.bets.shape[2], at.RUN)), np.zeros(at.CLOCK)
    bins, threshold = np.zeros((1, 2, at.BINS)), np.array([100.0 * 10_080.0])  # one alarm a week at 100 a minute

    def run(part: Any) -> int:
        ranks = kernels.drift_ranks(part, reference.values_sorted, reference.offsets, reference.two_valued)
        row, alarms = -1, 0
        while row < len(part):
            row = kernels.drift_fold(part, stamps, row + 1, ranks, threshold, reference.bets, 900.0, *state, bins)
            alarms += row < len(part)
        return alarms

    run(values[:10])
    began = time.process_time()
    alarms = sum(run(values[start : start + 1_000]) for start in range(0, len(values), 1_000))
    return {"seconds": time.process_time() - began, "alarms": alarms}


def main() -> None:
    library, task, path = sys.argv[1:]
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if library == "mlsecd":
        found = own(arrays, task)
    elif task.startswith("mmd"):
        found = {"alibi": alibi_mmd, "frouros": frouros_mmd}[library](arrays, int(task[3:]))
    else:
        found = {"river": river_stream, "scipy": scipy_days}[library](arrays, task)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({**found, "peak_mib": peak / 1024.0, "grown_mib": (peak - before) / 1024.0}))


if __name__ == "__main__":
    main()
