"""What TRL's losses are of the data that the page of policies' losses is given.

They are methods of its trainers. They run as they are, on a stand-in that has what they read, and
with a model whose hidden states are given. Everything in float64 but TRL's heads in blocks, which
compute in float32.
"""

import contextlib
import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import policy_page
import torch
from peer_numbers import Pair

import jaxlogits as jl

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

from trl import DPOTrainer, GRPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.server_distillation import ServerDistillationTrainer
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.distillation_trainer import _chunked_divergence_loss

RNG = np.random.default_rng(0)
B, P, S, D, K = 4, 2, 5, 8, 16  # sequences, tokens of a prompt and of an answer, features, classes
WHERE = np.arange(S) < np.array([5, 3, 4, 1])[:, None]
IDS = RNG.integers(K, size=[B, P + S])
TOKENS = np.where(WHERE, IDS[:, P:], -100)
# A token is said by the hidden state before it. The first and the last of a text say none of ours.
HIDDEN = RNG.normal(size=[B, P + S, D])
SAID = HIDDEN[:, P - 1 : -1]
KERNEL, OLD, REFERENCE, TEACHER = 0.3 * RNG.normal(size=[4, D, K])
ADVANTAGES = np.array([1.0, -1.0, 0.5, -0.5])  # with these, ratios are clipped on both sides

# TRL's names of the three ways to reduce.
REDUCTIONS = {"token": "bnpo", "sequence": "grpo", "batch": "dr_grpo"}
FLOAT32 = 2e-6  # a few dozen terms


def pairs() -> Iterator[Pair]:
    """Values, and gradients by the kernel of what is trained."""
    yield from _reinforce()
    yield from _both("GRPO", _grpo())
    yield from _both("DPO", _dpo())
    yield from _both("distillation", _distillation())
    yield from _both("distillation in blocks", _distillation_in_blocks(), FLOAT32)
    yield from _heads()


Loss = Callable[[Any], Any]


def _both(name: str, losses: Iterator[tuple[str, Loss, Loss]], *tolerance: float) -> Iterator[Pair]:
    """Of losses of a kernel, ours in JAX and theirs in torch."""
    for what, ours, theirs in losses:
        value, slope = jax.value_and_grad(ours)(KERNEL)
        kernel = torch.tensor(KERNEL, requires_grad=True)
        loss = theirs(kernel)
        loss.backward()
        yield Pair(f"{name}, {what}", value, loss.detach().numpy(), *tolerance)
        yield Pair(f"{name}, {what}, gradient", slope, kernel.grad.numpy(), *tolerance)


def _log_probs(kernel: Any) -> Any:
    """Of the tokens of all answers under one of the policies that isn't trained."""
    return jl.linear_log_probs(SAID, kernel, TOKENS, where=WHERE)


# What stands in TRL's trainers' places.


def _model(kernel: Any, rows: Any = slice(None)) -> Callable[..., Any]:
    """What a model with TRL's head returns, by torch's own functions in float64."""

    def call(*, labels: Any, **_: Any) -> Any:
        logits = torch.from_numpy(HIDDEN[rows, :-1]) @ kernel
        labels, log_p = labels[:, 1:], logits.log_softmax(-1)
        counts = labels != -100
        own = log_p.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
        return SimpleNamespace(
            log_probs=own.masked_fill(~counts, 0.0),
            entropy=-(log_p.exp() * log_p).sum(-1).masked_fill(~counts, 0.0),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == labels,
        )

    return call


def _trainer(**fields: Any) -> Any:
    accelerator = SimpleNamespace(
        autocast=contextlib.nullcontext,
        device="cpu",
        is_main_process=False,
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, **_: x,
    )
    return SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=accelerator,
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        **fields,
    )


# The losses, ours and theirs.


def _grpo() -> Iterator[tuple[str, Loss, Loss]]:
    page = policy_page.functions()
    old, reference = _log_probs(OLD), _log_probs(REFERENCE)
    given = {"old_per_token_logps": np.array(old), "ref_per_token_logps": np.array(reference)}

    def ours(kernel: Any, per: str, bonus: float) -> Any:
        each = jl.linear_log_probs_and_entropy(SAID, kernel, TOKENS, where=WHERE)
        losses = page["grpo"](each[0], old, reference, ADVANTAGES, beta=0.04)
        # The bonus is a mean over tokens whatever the rest is.
        return page["reduced"](losses, WHERE, per) - bonus * page["reduced"](each[1], WHERE)

    for per, loss_type in REDUCTIONS.items():
        for bonus, more in ((0.0, ""), (0.01, " with an entropy bonus")):
            options = {"beta": 0.04, "entropy_coef": bonus}
            own = functools.partial(ours, per=per, bonus=bonus)
            peer = functools.partial(_of_grpo_trainer, loss_type=loss_type, given=given, **options)
            yield f"per {per} ({loss_type}){more}", own, peer


def _reinforce() -> Iterator[Pair]:
    """TRL's loss with the policy itself as the old one has another value and REINFORCE's slope."""
    page = policy_page.functions()

    def ours(kernel: Any) -> Any:
        each = jl.linear_log_probs_and_entropy(SAID, kernel, TOKENS, where=WHERE)
        return page["reduced"](page["reinforce"](*each, ADVANTAGES, bonus=0.01), WHERE)

    kernel = torch.tensor(KERNEL, requires_grad=True)
    _of_grpo_trainer(kernel, "bnpo", {}, beta=0.0, entropy_coef=0.01).backward()
    what = "REINFORCE with an entropy bonus, gradient (bnpo at its first step)"
    yield Pair(what, jax.grad(ours)(KERNEL), kernel.grad.numpy())


def _of_grpo_trainer(kernel: Any, loss_type: str, given: dict[str, Any], **options: float) -> Any:
    trainer = _trainer(
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=0.2,
        max_completion_length=S,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=options["entropy_coef"] > 0,
        use_adaptive_entropy=False,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        **options,
    )
    log_probs = GRPOTrainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = log_probs.__get__(trainer)
    inputs = {
        "prompt_ids": IDS[:, :P],
        "prompt_mask": np.ones([B, P], int),
        "completion_ids": IDS[:, P:],
        "completion_mask": WHERE.astype(int),
        "advantages": ADVANTAGES,
        **given,
    }
    tensors = {name: torch.from_numpy(x) for name, x in inputs.items()}
    return GRPOTrainer._compute_loss(trainer, _model(kernel), tensors)


def _dpo() -> Iterator[tuple[str, Loss, Loss]]:
    """Each pair of an answer and the one two further on, and with smoothing each on its own."""
    page = policy_page.functions()
    references = _log_probs(REFERENCE).sum(axis=-1)

    def ours(kernel: Any, smoothing: float) -> Any:
        answers = _log_probs(kernel).sum(axis=-1)
        given = answers[:2], answers[2:], references[:2], references[2:]
        return page["dpo"](*given, beta=0.5, smoothing=smoothing).mean()

    def theirs(kernel: Any, loss_type: str, smoothing: float, chosen: list[int]) -> Any:
        trainer = _trainer(
            loss_types=[loss_type],
            loss_weights=[1.0],
            beta=0.5,
            label_smoothing=smoothing,
            ld_alpha=None,
            f_divergence_type="reverse_kl",
            precompute_ref_logps=True,
            use_weighting=False,
        )
        rejected = [i + 2 for i in chosen]
        rows = chosen + rejected
        mask = np.concatenate([np.zeros([B, P], bool), WHERE], axis=1)
        inputs = {
            "input_ids": IDS[rows],
            "attention_mask": np.ones([len(rows), P + S], int),
            "completion_mask": mask[rows].astype(int),
            "ref_chosen_logps": np.array(references)[chosen],
            "ref_rejected_logps": np.array(references)[rejected],
        }
        given = {name: torch.from_numpy(x) for name, x in inputs.items()}
        return DPOTrainer._compute_loss(trainer, _model(kernel, rows), given, return_outputs=False)

    def theirs_of_each(kernel: Any) -> Any:
        # TRL smooths in "aot" alone, which sorts the pairs of a batch: of one pair it is DPO.
        # What we call smoothing is twice the share of wrong labels that it takes.
        return sum(theirs(kernel, "aot", 0.1, [i]) for i in (0, 1)) / 2

    yield "sigmoid", lambda k: ours(k, 0.0), lambda k: theirs(k, "sigmoid", 0.0, [0, 1])
    yield "with label smoothing (aot of one pair)", lambda k: ours(k, 0.2), theirs_of_each


def _distillation() -> Iterator[tuple[str, Loss, Loss]]:
    page = policy_page.functions()
    labels = torch.from_numpy(TOKENS)
    said, teacher = torch.from_numpy(SAID), torch.from_numpy(SAID @ TEACHER)

    def gkd(beta: float) -> Loss:
        return lambda kernel: GKDTrainer.generalized_jsd_loss(
            said @ kernel, teacher, labels, beta=beta
        )

    for what, ours, beta in _divergences(page):
        yield f"{what} (GKD)", ours, gkd(beta)

    stored = jl.linear_top_k(SAID, TEACHER, 4, where=WHERE)
    found = torch.from_numpy(SAID @ TEACHER).log_softmax(-1).topk(4, dim=-1)
    result = {"topk_logprobs": found.values, "topk_token_ids": found.indices}
    trainer = SimpleNamespace(
        loss_add_tail=True,
        _reduce_divergence_loss=ServerDistillationTrainer._reduce_divergence_loss,
    )

    def of_stored(kernel: Any) -> Any:
        return page["reduced"](page["top_k_kl"](SAID, kernel, *stored, WHERE), WHERE)

    def server(kernel: Any) -> Any:
        log_probs = (said @ kernel).log_softmax(-1)
        loss = ServerDistillationTrainer._compute_server_forward_kl_loss
        return loss(trainer, result, log_probs, labels)

    yield "from stored top-k (server distillation)", of_stored, server


def _divergences(page: dict[str, Any]) -> Iterator[tuple[str, Loss, float]]:
    """With TRL's beta, the teacher's share of the mixture."""

    def of(name: str, **options: float) -> Loss:
        return lambda kernel: page["reduced"](
            page[name](SAID, TEACHER, kernel, WHERE, **options), WHERE
        )

    yield "forward KL", of("forward_kl"), 0.0
    yield "reverse KL", of("reverse_kl"), 1.0
    yield "Jensen-Shannon", of("jensen_shannon"), 0.5
    yield "Jensen-Shannon, teacher 0.25", of("jensen_shannon", weight=0.25), 0.25


def _distillation_in_blocks() -> Iterator[tuple[str, Loss, Loss]]:
    said, where = torch.tensor(SAID, dtype=torch.float32), torch.from_numpy(WHERE)
    teacher = torch.tensor(TEACHER.T, dtype=torch.float32)

    def blocks(beta: float) -> Loss:
        return lambda kernel: _chunked_divergence_loss(
            said, said, kernel.T.float(), teacher, where, beta
        )[0]

    for what, ours, beta in _divergences(policy_page.functions()):
        yield f"{what}, float32", ours, blocks(beta)


def _heads() -> Iterator[Pair]:
    """Log probabilities and entropies of a head that its trainers' models are given."""
    hidden, kernel = SAID[WHERE], KERNEL
    capped = {"soft_cap": 1.5, "temperature": 0.7}
    for options in ({}, capped):
        ours = jl.linear_log_probs_and_entropy(hidden, kernel, TOKENS[WHERE], **options)
        theirs = ChunkedLogProbFunction.apply(
            torch.tensor(hidden, dtype=torch.float32),
            torch.tensor(kernel.T, dtype=torch.float32),
            None,
            torch.from_numpy(TOKENS[WHERE]),
            options.get("temperature", 1.0),
            K // 2,
            options.get("soft_cap"),
            1.0,
            ("entropy",),
        )
        which = " with soft cap and temperature" if options else ""
        for what, own, peer in zip(("log probabilities", "entropies"), ours, theirs, strict=False):
            yield Pair(f"{what} of a head{which}, float32", own, peer.numpy(), FLOAT32)
