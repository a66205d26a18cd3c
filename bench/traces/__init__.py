"""Labelled traces of ordinary clients and thieves, made here: no trace of a customer is needed to judge a detector.

``python -m bench.traces --out DIR`` writes, for each victim and part, one gzip JSON-lines file a scenario and
``NAME.truth.json`` beside it: ``{client: {"attack": bool, "kind": str, "campaign": int | null}}``, and
``plan.json``, which says what each scenario is to be mixed with. The same seed gives the same bytes.
"""
