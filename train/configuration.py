"""The checkpoint's config.json: the backbone's configuration, the exits and the task."""

from __future__ import annotations

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from berxit.runtime.kinds import KINDS, Kind
from berxit.runtime.metrics import positive_class

EXIT_HEADS = ("linear", "pooler")
POOLINGS = ("first", "mean")


PROBLEM_TYPES = {
    "single_label_classification": "classification",
    "regression": "regression",
    "multi_label_classification": "multilabel",
    "token_classification": "tokens",
    "multi_head_classification": "heads",
}
"""transformers' name of a kind of task -> name in runtime.kinds.KINDS; transformers has no name for the last two."""


class MultiExitConfig(PreTrainedConfig):
    """Configuration of MultiExitModel. Class names and their number are the base class's ``id2label``."""

    model_type = "berxit"
    sub_configs_defaults = {  # noqa: RUF012 - as the base class has it
        "backbone": SubConfigSpec(config_class=AutoConfig, model_type="bert")
    }

    backbone: dict | PreTrainedConfig | None = None
    """The encoder's own configuration, of any family in train/backbones/."""
    exit_head: str = "linear"
    """linear: one linear layer on h_i, as in the paper's text. pooler: dense, tanh, linear, as in the authors' code."""
    pooling: str = "first"
    """Definition of h_i. first: hidden state of the first token, as in the paper. mean: mean over all tokens."""
    lte: bool = False
    """True for a model with an LTE module (equation 8)."""
    strategy: str = "alternating"
    """Fine-tuning strategy, a name in train.strategies.STRATEGIES."""
    task: str = "custom"
    problem_type: str | None = "single_label_classification"
    """The kind of task in transformers' terms, a key of PROBLEM_TYPES."""
    metric: str = "accuracy"
    positive: str | None = None
    """The positive class of F1, which is always the second label. None in checkpoints of older versions."""
    text_columns: list | tuple = ("text",)
    """Columns of the data files with the text, or with the two texts of a pair."""
    label_column: str = "label"
    """Column of the labels; for heads their columns, separated by "|"."""
    max_length: int = 128
    """Maximum number of tokens of an input; longer texts are truncated."""

    def __post_init__(self, **kwargs):  # type: ignore[no-untyped-def]
        super().__post_init__(**kwargs)
        if self.exit_head not in EXIT_HEADS:
            raise ValueError(f"exit_head is '{self.exit_head}': choose one of {', '.join(EXIT_HEADS)}")
        if self.problem_type not in PROBLEM_TYPES:
            raise ValueError(f"problem_type is '{self.problem_type}': choose one of {', '.join(PROBLEM_TYPES)}")
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling is '{self.pooling}': choose one of {', '.join(POOLINGS)}")
        self.text_columns = tuple(self.text_columns)
        if self.positive is not None and self.positive != positive_class(self.metric, self.labels):
            raise ValueError(f"positive is '{self.positive}': it must be the second label of two, and metric f1")

    @property
    def kind(self) -> str:
        """Name in runtime.kinds.KINDS."""
        return PROBLEM_TYPES[str(self.problem_type)]

    @property
    def task_kind(self) -> Kind:
        """The kind as an object."""
        return KINDS[self.kind].of(self.labels)

    @property
    def regression(self) -> bool:
        return self.kind == "regression"

    @property
    def labels(self) -> tuple[str, ...]:
        """Class or label names in the order of the logits; empty for regression."""
        return () if self.regression else tuple(self.id2label[i] for i in range(len(self.id2label)))


AutoConfig.register("berxit", MultiExitConfig)
