"""The multi-exit model: a BERT-family encoder with an exit head after every layer, and one LTE module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from berxit.train.backbones import Adapter, adapter_for
from berxit.train.configuration import MultiExitConfig
from berxit.train.losses import by_head, exit_losses, lte_losses
from berxit.train.pretrained import load_encoder, resolve_model
from berxit.train.recipes import DEFAULT


@dataclass
class MultiExitOutput(ModelOutput):
    """Output of a pass through all layers. B rows, n layers, C outputs (classes, or 1 for regression)."""

    loss: Tensor | None = None
    """The sum of all exits' losses (equation 3); only with labels."""
    logits: Tensor | None = None
    """(B, C) or (B, S, C) logits of the last exit, for transformers' pipelines and Trainer."""
    exit_logits: Tensor | None = None
    """(B, n, C) logits of every exit; (B, n, S, C) of a model that labels words."""
    certainties: Tensor | None = None
    """(B, n) learned certainty u_i in [0, 1] of every exit (equation 8); None without LTE."""
    hidden_states: tuple[Tensor, ...] | None = None
    """n + 1 tensors (B, S, d): the embeddings, then each layer. Only with ``output_hidden_states``."""


class ExitHead(nn.Module):
    """The classifier g_i of one layer: pooled hidden state h_i (B, d) -> logits (B, C). A model that labels words
    applies it to every token: (B, S, d) -> (B, S, C).

    ``norm``: the exit's own norm of the hidden states, which is applied before pooling; None for an encoder whose
    layers normalize their own outputs.
    """

    def __init__(self, hidden_size: int, outputs: int, dropout: float, pooler: bool, norm: nn.Module | None) -> None:
        super().__init__()
        self.norm = norm
        self.pooler = nn.Linear(hidden_size, hidden_size) if pooler else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, outputs)

    def normalized(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, S, d) after the exit's norm."""
        return hidden if self.norm is None else self.norm(hidden)

    def forward(self, state: Tensor) -> Tensor:
        if self.pooler is not None:
            state = torch.tanh(self.pooler(state))
        return self.classifier(self.dropout(state))


class MultiExitModel(PreTrainedModel):
    """Encoder, n exit heads and one LTE module shared by all layers (sections 3 and 4.2 of the paper).

    ``from_backbone`` creates one from a pre-trained encoder. ``from_pretrained`` and ``save_pretrained`` work as in
    every transformers model. AutoModelForSequenceClassification loads it after ``berxit.train`` is imported.
    """

    config_class = MultiExitConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: MultiExitConfig) -> None:
        super().__init__(config)
        self.adapter: Adapter = adapter_for(config.backbone)
        self.backbone = AutoModel.from_config(config.backbone)
        norm, pooler = self.adapter.final_norm(self.backbone), config.exit_head == "pooler"
        self.adapter.remove_pooler(self.backbone)
        self.heads = nn.ModuleList(
            ExitHead(self.hidden_size, config.num_labels, self.adapter.dropout, pooler, copy.deepcopy(norm))
            for _ in range(self.layers)
        )
        self.lte = nn.Linear(self.hidden_size, 1) if config.lte else None
        self.post_init()

    @classmethod
    def from_backbone(cls, model: Path | str, *, layers: int | None = None, **options: Any) -> MultiExitModel:
        """A new multi-exit model on the pre-trained encoder ``model`` (a folder, or a name on the hub).

        ``layers``: use only the first ``layers`` layers. ``options``: fields of MultiExitConfig; without ``pooling``,
        the mean. The backbone's weights are copied. Exit heads are initialized randomly; the dense layer of
        pooler heads is copied from the pre-trained pooler if there is one, the norm of the exits from a pre-norm
        encoder's final norm. Raises InputError for an encoder that train/checks.py rejects, BerxitError for files
        that cannot be read.
        """
        backbone, has_pooler = load_encoder(resolve_model(model), layers)
        adapter = adapter_for(backbone.config)
        pooler, norm = adapter.pooler(backbone) if has_pooler else None, adapter.final_norm(backbone)
        if options.get("pooling") is None:
            options["pooling"] = DEFAULT["pooling"]
        multi_exit = cls(MultiExitConfig(backbone=backbone.config, **options))
        adapter.remove_pooler(backbone)
        multi_exit.backbone.load_state_dict(backbone.state_dict())
        for head in multi_exit.heads:
            if pooler is not None and head.pooler is not None:
                head.pooler.load_state_dict(pooler.state_dict())
            if norm is not None:
                head.norm.load_state_dict(norm.state_dict())
        return multi_exit

    def first_layers(self, layers: int) -> MultiExitModel:
        """A copy with the first ``layers`` layers, whose last exit is that of layer ``layers``.

        Raises InputError for an encoder that cannot be shortened (ALBERT with several layer groups).
        """
        config = copy.deepcopy(self.config)
        adapter_for(config.backbone).keep_layers(layers)
        shorter, weights = MultiExitModel(config), self.state_dict()
        shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
        return shorter.train(self.training)

    @torch.no_grad()
    def init_head_bias(self, value: float) -> None:
        """Sets the bias of every exit head to ``value``. For regression: training then starts from the mean label."""
        for head in self.heads:
            head.classifier.bias.fill_(value)

    @property
    def layers(self) -> int:
        return self.adapter.layers

    @property
    def hidden_size(self) -> int:
        return self.adapter.hidden_size

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool | None = None,
    ) -> MultiExitOutput:
        """Runs all layers and exits on B rows of S tokens: ids (B, S), mask (B, S) with 1 for a token, types (B, S).

        ``labels``: class numbers or values (B,), labels (B, C), tags (B, S) or classes of heads (B, H), as in
        ``exit_losses``; with them, the output contains the loss. Raises ValueError for ``return_dict=False`` (there is
        no tuple output), and TypeError for an unknown argument.
        """
        if return_dict is False:
            raise ValueError("return_dict=False is not supported: read the fields of the output")
        types = {"token_type_ids": token_type_ids} if self.adapter.has_token_types else {}
        hidden_states = self.backbone(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **types
        ).hidden_states
        states = self._pool(hidden_states[1:], attention_mask)
        of_exits = states.unbind(dim=1)
        if self.config.task_kind.words:
            of_exits = tuple(
                head.normalized(hidden) for head, hidden in zip(self.heads, hidden_states[1:], strict=True)
            )
        logits = torch.stack([head(state) for head, state in zip(self.heads, of_exits, strict=True)], dim=1)
        certainties = torch.sigmoid(self.lte(states).squeeze(-1)) if self.lte is not None else None
        return MultiExitOutput(
            loss=None if labels is None else self._loss(logits, certainties, labels),
            logits=logits[:, -1],
            exit_logits=logits,
            certainties=certainties,
            hidden_states=hidden_states if output_hidden_states else None,
        )

    def _loss(self, logits: Tensor, certainties: Tensor | None, labels: Tensor) -> Tensor:
        """The joint loss, which transformers' own Trainer minimizes. berxit-train uses the strategy's objective."""
        logits = by_head(logits, self.config.task_kind)
        losses = exit_losses(logits, labels, self.config.regression)
        if certainties is not None:
            losses = losses + lte_losses(certainties, logits, labels, self.config.regression)
        return losses.sum()

    def _pool(self, hidden_states: Sequence[Tensor], attention_mask: Tensor | None) -> Tensor:
        """h_i of every layer: n hidden states (B, S, d) -> (B, n, d). Pools layer by layer, which needs less memory."""
        layers = range(1, len(self.heads) + 1)
        pooled = [self.pooled(i, hidden, attention_mask) for i, hidden in zip(layers, hidden_states, strict=True)]
        return torch.stack(pooled, dim=1)

    def pooled(self, layer: int, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """h_i, the input of the exit head of layer i = ``layer``: its hidden state (B, S, d) -> (B, d)."""
        head: ExitHead = self.heads[layer - 1]  # type: ignore[assignment]
        if self.config.pooling == "first":
            return head.normalized(hidden[:, :1])[:, 0]
        normalized = head.normalized(hidden)
        if attention_mask is None:
            return normalized.mean(dim=1)
        weights = (attention_mask / attention_mask.sum(dim=1, keepdim=True)).to(hidden.dtype)
        return torch.einsum("bsd,bs->bd", normalized, weights)

    def _init_weights(self, module: nn.Module) -> None:
        """Initializes exit heads like BERT's classifiers: normal weights, zero biases."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=getattr(self.config.backbone, "initializer_range", 0.02))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


AutoModelForSequenceClassification.register(MultiExitConfig, MultiExitModel)
