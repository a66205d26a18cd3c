from __future__ import annotations

from mlsecd import app, config
from mlsecd.findings.ledger import Ledger
from mlsecd.meters import Meters


def test_the_fold_keeps_the_ledger_that_pages_and_metrics_read() -> None:
    """An empty ledger is false in a condition: the daemon once folded into another one, and showed no finding."""
    ledger = Ledger()
    assert app.make_fold(config.parse(""), Meters(), ledger=ledger).ledger is ledger
    pipeline = app.make_pipeline(config.parse('[daemon]\nbaseline = ""\n'), Meters())
    assert pipeline.fold.ledger is pipeline.ledger
