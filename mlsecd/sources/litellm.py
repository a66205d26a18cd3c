"""LiteLLM proxy's own account of each call, as its ``generic_api`` callback posts it. Off by default."""

from __future__ import annotations

from mlsecd.adapters.base import Adapted, Context
from mlsecd.adapters.litellm import ADAPTER
from mlsecd.sources.http_exchange import Answer, Refused, Request
from mlsecd.sources.http_receiver import ReceiverParams
from mlsecd.sources.posted import PostedSource

__all__ = ["SOURCE", "LiteLlm", "LiteLlmParams"]


class LiteLlmParams(ReceiverParams, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Configuration of the LiteLLM receiver."""


class LiteLlm(PostedSource):
    """``POST /v1/litellm``: a JSON array, one object, or JSON lines."""

    name = "litellm"
    summary = "calls through a LiteLLM proxy, posted by its generic_api callback"
    Params = LiteLlmParams
    paths = frozenset({"/v1/litellm"})
    types = frozenset({"application/json", "application/x-ndjson", "text/plain"})

    def adapt(self, request: Request, context: Context) -> tuple[Adapted, Answer]:
        """Record lines of a batch of calls."""
        adapted = ADAPTER.adapt(request.body, context)
        if adapted.bad and not adapted.lines:
            raise Refused(400, "no StandardLoggingPayload in it")
        return adapted, Answer(200, b"{}", "application/json")


SOURCE = LiteLlm
