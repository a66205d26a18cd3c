"""A digits classifier for Triton's Python backend. Its interpreter ignores PYTHONPATH, so we follow it by hand."""

import os
import sys

sys.path.insert(0, os.environ["PYTHONPATH"])

import numpy as np
import triton_python_backend_utils as backend


class TritonPythonModel:
    """What Triton looks for."""

    def initialize(self, _args):
        from sklearn.datasets import load_digits  # noqa: PLC0415
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415

        images, labels = load_digits(return_X_y=True)
        self.model = LogisticRegression(max_iter=60).fit(images[:500] / 16, labels[:500])

    def execute(self, requests):
        answers = []
        for request in requests:
            rows = backend.get_input_tensor_by_name(request, "x").as_numpy()
            probs = self.model.predict_proba(rows).astype(np.float32)
            label = probs.argmax(1).astype(np.int32)[:, None]
            answers.append(backend.InferenceResponse([backend.Tensor("probs", probs), backend.Tensor("label", label)]))
        return answers
