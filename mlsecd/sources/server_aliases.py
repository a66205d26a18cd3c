"""What inference servers call the same things, version by version; buckets and other labels are never looked at."""

from __future__ import annotations

from typing import Final

__all__ = ["COUNTERS", "GAUGES", "MODEL_LABELS", "NAMES"]

# Our name -> theirs; of several that a server shows at once the first counts, for old and new names stand side by side.
GAUGES: Final[dict[str, tuple[str, ...]]] = {
    "running": (
        "vllm:num_requests_running",
        "ray_vllm_num_requests_running",
        "sglang:num_running_reqs",
        "tgi_batch_current_size",
        "llamacpp:requests_processing",
        "ray_serve_replica_processing_queries",
        "bentoml_service_request_in_progress",
    ),
    "waiting": (
        "vllm:num_requests_waiting",
        "ray_vllm_num_requests_waiting",
        "sglang:num_queue_reqs",
        "tgi_queue_size",
        "llamacpp:requests_deferred",
        "nv_inference_pending_request_count",
        "ray_serve_deployment_queued_queries",
    ),
    "kv_cache_usage": (
        "vllm:kv_cache_usage_perc",
        "vllm:gpu_cache_usage_perc",
        "ray_vllm_kv_cache_usage_perc",
        "sglang:token_usage",
        "llamacpp:kv_cache_usage_ratio",
    ),
}
COUNTERS: Final[dict[str, tuple[str, ...]]] = {
    "requests": (
        "vllm:request_success_total",
        "vllm:request_success",
        "ray_vllm_request_success_total",
        "sglang:num_requests_total",
        "tgi_request_success_total",
        "tgi_request_success",
        "nv_inference_request_success",
        "ray_serve_num_http_requests_total",
        "ray_serve_num_http_requests",
        "ray_serve_deployment_request_counter_total",
        "ray_serve_deployment_request_counter",
        "model_infer_request_success_total",
        "bentoml_service_request_total",
    ),
    "failed": (
        "nv_inference_request_failure",
        "tgi_request_failure_total",
        "tgi_request_failure",
        "ray_serve_num_http_error_requests_total",
        "ray_serve_num_http_error_requests",
        "model_infer_request_failure_total",
    ),
    "input_tokens": (
        "vllm:prompt_tokens_total",
        "vllm:prompt_tokens",
        "ray_vllm_prompt_tokens_total",
        "sglang:prompt_tokens_total",
        "tgi_request_input_length_sum",
        "llamacpp:prompt_tokens_total",
    ),
    "output_tokens": (
        "vllm:generation_tokens_total",
        "vllm:generation_tokens",
        "ray_vllm_generation_tokens_total",
        "sglang:generation_tokens_total",
        "tgi_request_generated_tokens_sum",
        "llamacpp:tokens_predicted_total",
    ),
}
# Ray counts requests by application, and what its replicas do by deployment as well: the former is the model.
MODEL_LABELS: Final = ("model_name", "model", "application", "deployment", "service_name")
NAMES: Final = frozenset(name for group in (GAUGES, COUNTERS) for names in group.values() for name in names)
