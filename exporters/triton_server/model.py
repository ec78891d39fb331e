"""Model of Triton's Python backend: runs the bundle in the same folder, with early exit inside one model.

``berxit triton`` copies this file to the folder of a model version, where Triton imports it. Inputs, outputs and
parameters are in docs/serving.md. It needs berxit and a backend for the bundle in Triton's Python environment, and
Triton 23.10 or newer.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from berxit.runtime import BerxitError, EarlyExitRunner, InputError, Prediction
from berxit.runtime.tokenization import Text

Settings = tuple[float | None, float | None]
"""Threshold and deadline in milliseconds; None without one."""


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the bundle. The parameters of config.pbtxt set the backend, the threads, and the threshold and the
        deadline of requests that have none."""
        config = json.loads(args["model_config"])
        parameters = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        self._runner = EarlyExitRunner.load(
            Path(__file__).parent / "bundle",
            backend=parameters.get("backend"),
            threads=int(parameters["threads"]) if "threads" in parameters else None,
        )
        self._defaults = _number(parameters, "threshold"), _number(parameters, "deadline_ms")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request. The texts of all requests with the same settings are one batch."""
        responses: list[Any] = [None] * len(requests)
        groups: defaultdict[Settings, list[tuple[int, list[Text]]]] = defaultdict(list)
        for place, request in enumerate(requests):
            if request.is_cancelled():
                responses[place] = _failed("the client cancelled the request", pb_utils.TritonError.CANCELLED)
                continue
            try:
                groups[self._settings(request)].append((place, _texts(request)))
            except (BerxitError, ValueError) as error:
                responses[place] = _failed(str(error), pb_utils.TritonError.INVALID_ARG)
        for settings, members in groups.items():
            for place, response in self._answer(settings, members):
                responses[place] = response
        return responses

    def finalize(self) -> None:
        """Frees the bundle."""
        self._runner.close()

    def _settings(self, request: Any) -> Settings:
        parameters = json.loads(request.parameters() or "{}")
        threshold, deadline_ms = _number(parameters, "threshold"), _number(parameters, "deadline_ms")
        return (
            self._defaults[0] if threshold is None else threshold,
            self._defaults[1] if deadline_ms is None else deadline_ms,
        )

    def _answer(self, settings: Settings, members: list[tuple[int, list[Text]]]) -> list[tuple[int, Any]]:
        """Responses of requests with the same settings, as (place, response). An invalid text fails its own request
        only."""
        threshold, deadline_ms = settings
        texts = [text for _, texts in members for text in texts]
        try:
            found = iter(self._runner.predict_batch(texts, threshold=threshold, deadline_ms=deadline_ms))
        except InputError as error:
            if len(members) > 1:
                return [answer for member in members for answer in self._answer(settings, [member])]
            return [(members[0][0], _failed(str(error), pb_utils.TritonError.INVALID_ARG))]
        except BerxitError as error:
            return [(place, _failed(str(error), pb_utils.TritonError.INTERNAL)) for place, _ in members]
        return [(place, self._response([next(found) for _ in texts])) for place, texts in members]

    def _response(self, predictions: list[Prediction]) -> Any:
        """Response of B texts: every output has shape (B, 1), except PROBS (B, C). The spans of a text are one string
        of JSON, because their number differs between the texts of a batch."""
        model = self._runner.manifest.model
        scores = np.array([list(prediction.scores.values()) for prediction in predictions], dtype=np.float32)
        outputs = {
            "EXIT_LAYER": np.array([[prediction.exit_layer] for prediction in predictions], dtype=np.int32),
            "CERTAINTY": np.array([[prediction.certainty] for prediction in predictions], dtype=np.float32),
            "TRUNCATED": np.array([[prediction.truncated] for prediction in predictions], dtype=np.bool_),
        }
        if model.regression:
            outputs["VALUE"] = scores
        else:
            outputs["LABEL"] = _strings([str(prediction.label) for prediction in predictions])
        if model.task_kind.words:
            spans = [[span._asdict() for span in prediction.spans or ()] for prediction in predictions]
            outputs["SPANS"] = _strings([json.dumps(each, ensure_ascii=False) for each in spans])
        elif not model.regression:
            outputs["PROBS"] = scores
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, values) for name, values in outputs.items()]
        )


def _texts(request: Any) -> list[Text]:
    """Texts of a request, or pairs: inputs of shape (B, 1). Raises ValueError for bytes that are not UTF-8."""
    first = pb_utils.get_input_tensor_by_name(request, "TEXT")
    second = pb_utils.get_input_tensor_by_name(request, "TEXT_PAIR")
    columns = [
        [text.decode() for text in tensor.as_numpy().ravel()] for tensor in (first, second) if tensor is not None
    ]
    return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _strings(texts: Sequence[str]) -> npt.NDArray[np.object_]:
    """(B, 1) strings, as bytes."""
    return np.array([[text.encode()] for text in texts], dtype=np.object_)


def _number(parameters: dict[str, Any], name: str) -> float | None:
    """A parameter as a number; None if it is missing. Raises ValueError for anything else."""
    value = parameters.get(name)
    try:
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"the parameter {name} is {value!r}: give a number") from None


def _failed(message: str, code: Any) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
