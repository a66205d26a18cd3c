"""Small networks: the victims, and what thieves train on their answers."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

__all__ = ["Network"]

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]


class Network:
    """A tanh network, trained by scikit-learn and evaluated here: the last hidden layer is wanted too."""

    def __init__(self, model: MLPClassifier) -> None:
        self.weights = [np.asarray(w, np.float32) for w in model.coefs_]
        self.biases = [np.asarray(b, np.float32) for b in model.intercepts_]
        self.classes = np.asarray(model.classes_, np.int64)
        if len(self.classes) == 2:  # scikit-learn keeps one logit for two classes
            self.weights[-1] = np.hstack([-self.weights[-1], self.weights[-1]]) / 2
            self.biases[-1] = np.concatenate([-self.biases[-1], self.biases[-1]]) / 2

    @classmethod
    def train(cls, x: F4, y: I8, hidden: tuple[int, ...], seed: int, epochs: int) -> Network:
        """Fit to ``y``, at least two classes of it."""
        model = MLPClassifier(
            hidden, activation="tanh", max_iter=epochs, random_state=seed, alpha=1e-3, batch_size=min(128, len(x))
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return cls(model.fit(x, y))

    def answer(self, x: F4) -> tuple[F4, F4]:
        """Penultimate layer (n, width) and class probabilities (n, classes)."""
        hidden = x
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = np.tanh(hidden @ weights + biases)
        logits = hidden @ self.weights[-1] + self.biases[-1]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return hidden, odds / odds.sum(axis=1, keepdims=True)

    def label(self, x: F4) -> I8:
        """The class of each row."""
        return self.classes[self.answer(x)[1].argmax(axis=1)]

    def slope(self, x: F4) -> F4:
        """Gradient of the predicted class's log-probability by the input, (n, width)."""
        layers = [x]
        for weights, biases in zip(self.weights[:-1], self.biases[:-1], strict=True):
            layers.append(np.tanh(layers[-1] @ weights + biases))
        logits = layers[-1] @ self.weights[-1] + self.biases[-1]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        back = -odds / odds.sum(axis=1, keepdims=True)
        back[np.arange(len(x)), logits.argmax(axis=1)] += 1
        for weights, layer in zip(self.weights[:0:-1], layers[:0:-1], strict=True):
            back = (back @ weights.T) * (1 - layer**2)
        return back @ self.weights[0].T
