"""The model with which a run starts: a pre-trained encoder with fresh exits, or a checkpoint; and its tokenizer."""

from __future__ import annotations

from collections.abc import Callable

from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase

from berxit.runtime.errors import BerxitError, first_line
from berxit.train import checks
from berxit.train.backbones import ADAPTERS, unsupported
from berxit.train.configuration import PROBLEM_TYPES, MultiExitConfig
from berxit.train.continuing import continue_from, family_of, is_checkpoint
from berxit.train.modeling import MultiExitModel
from berxit.train.options import TrainingOptions
from berxit.train.pretrained import read_config, read_tokenizer, resolve_model
from berxit.train.tasks import Task


def start_model(
    task: Task,
    options: TrainingOptions,
    report: Callable[[str], None] = lambda line: None,
    mean_label: float | None = None,
) -> tuple[MultiExitModel, PreTrainedTokenizerBase]:
    """The pre-trained encoder with exits for the task, and its tokenizer; both checked (train/checks.py).

    ``--model`` may be a checkpoint of this project (train/continuing.py). ``mean_label``: for regression, the value
    that new exit heads predict at the start.

    Raises InputError for a model or tokenizer that a check rejects, BerxitError for files that cannot be read.
    """
    source = resolve_model(options.model)
    try:
        fields = {
            "exit_head": options.exit_head,
            "pooling": options.pooling,
            "lte": options.lte,
            "strategy": options.strategy,
            "task": task.name,
            "problem_type": next(name for name, kind in PROBLEM_TYPES.items() if kind == task.kind),
            "id2label": dict(enumerate(task.labels)) if task.labels else {0: "value"},
            "label2id": {name: i for i, name in enumerate(task.labels or ("value",))},
            "metric": task.metric,
            "positive": task.positive,
            "text_columns": task.text_columns,
            "label_column": task.label_column,
            "max_length": options.max_length,
        }
        if is_checkpoint(source):
            fields["pooling"] = options.pooling or read_config(source).pooling
            continued = continue_from(source, MultiExitConfig(**fields), options.layers)
            model, new_heads = continued.model, not continued.heads_kept
            report(continued.description)
        else:
            model, new_heads = MultiExitModel.from_backbone(source, layers=options.layers, **fields), True
        if mean_label is not None and new_heads:
            model.init_head_bias(mean_label)
        tokenizer = read_tokenizer(source)
    except BerxitError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, and its own types for a bad config.json
        family = family_of(source)
        if family is not None and family not in {*ADAPTERS, *CONFIG_MAPPING}:
            raise unsupported(family, "the installed transformers has no model of this type") from error
        raise BerxitError(
            f"cannot load --model {options.model}: {first_line(error)}. Give a model folder or a hub name"
        ) from error
    checks.check_max_length(source, model.adapter, options.max_length)
    pairs = len(task.text_columns) == 2
    checks.check_tokenizer(source, tokenizer, model.backbone, pairs=pairs, pooling=model.config.pooling)
    if stated := take_padding_id(model, tokenizer):
        report(stated)
    return model, tokenizer


def take_padding_id(model: MultiExitModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Sets the model's padding id to the tokenizer's, and returns a line about the change; empty without a change.

    The config.json of some models (multilingual MiniLM and E5) contains another id. If positions do not depend on
    padding, only the gradient does: the embedding of the wrong id would receive none.
    """
    stated, own = model.config.backbone.pad_token_id, tokenizer.pad_token_id
    model.config.backbone.pad_token_id = model.backbone.config.pad_token_id = own
    model.get_input_embeddings().padding_idx = own
    if stated == own:
        return ""
    return f"config.json has pad_token_id {stated}, the tokenizer pads with {own}: the model now uses {own}"
