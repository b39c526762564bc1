"""The cold start's judgement: when to ask, from the SLM's own solve rate.

After the traces (`collab.rl.traces`) have taught the skills, rollouts that ask at random show which
of its drafts the SLM gets right. Each draft's boundary is labelled by that - keep it if it was
true, ask if not - and the help head alone is fitted to the labels, the trunk frozen. The head sees
what it will see at use: its own hidden states and its own confidence.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from collab.metrics import masked_mean
from collab.models.policy import HEAD, Policy
from collab.rl import reading
from collab.rl.batch import Batch
from collab.tasks.grading import exact_match
from collab.types import ANSWER_ID, FIRST_REQUEST_ID, THINK, THINK_ID, Episode, Params

PULL = 1e-3  # weight of the squared distance to the head before the fit: our choice


def label_decisions(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Soft targets f32 [K, A] and which decisions have one, bool [K].

    A draft that states a known step is judged by it. Where no draft can be matched to a known
    solution, each draft is judged by the final answer. Other boundaries keep what was done.
    """
    trace = episode.trace
    K, A = trace.legal_KA.shape
    target_KA, is_labelled_K = np.zeros((K, A), np.float32), np.zeros(K, bool)
    offset = len(episode.segments) - K  # an opening request is no decision
    steps = episode.problem.steps
    by_query = {step.query: index for index, step in enumerate(steps)}
    drafts = [segment.text for segment in episode.segments if segment.action == THINK]
    is_matched = any(_query(text) in by_query for text in drafts)
    is_right = exact_match(episode.answer, episode.problem.answers) == 1.0
    for k in range(1, K):
        before = episode.segments[offset + k - 1]
        taken = int(trace.action_K[k])
        if before.action != THINK:
            target_KA[k, taken], is_labelled_K[k] = 1.0, taken < FIRST_REQUEST_ID
            continue
        index = by_query.get(_query(before.text))
        if is_matched and index is None:
            continue  # it left the known path; nothing says what is true there
        if index is not None:
            is_true = before.text.strip() == steps[index].statement or steps[index].is_local
            keep = ANSWER_ID if index == len(steps) - 1 else THINK_ID
        else:
            is_true = is_right
            keep = taken if taken in (THINK_ID, ANSWER_ID) else THINK_ID
        _write_target(target_KA[k], trace.legal_KA[k], keep=keep, is_true=is_true)
        is_labelled_K[k] = trace.legal_KA[k].sum() > 1
    return target_KA, is_labelled_K


def _write_target(target_A: np.ndarray, legal_A: np.ndarray, *, keep: int, is_true: bool) -> None:
    requests = np.flatnonzero(legal_A)
    requests = requests[requests >= FIRST_REQUEST_ID]
    if is_true or not len(requests):
        target_A[keep] = 1.0
    else:
        target_A[requests] = 1.0 / len(requests)


def _query(statement: str) -> str:
    return statement.split(" = ")[0].strip()


def pad_labels(
    labels: Sequence[tuple[np.ndarray, np.ndarray]], rows: int, decisions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Stack labels to f32 [B, K, A] and bool [B, K]."""
    actions = labels[0][0].shape[1]
    target_BKA = np.zeros((rows, decisions, actions), np.float32)
    is_labelled_BK = np.zeros((rows, decisions), bool)
    for b, (target_KA, is_labelled_K) in enumerate(labels):
        target_BKA[b, : len(target_KA)] = target_KA
        is_labelled_BK[b, : len(target_KA)] = is_labelled_K
    return target_BKA, is_labelled_BK


def decision_hidden(policy: Policy, params: Params, batch: Batch, chunk_rows: int = 0) -> jax.Array:
    """Hidden state that each decision reads, f32 [B, K, D]; `reading.hidden_states` of chunks."""
    hidden_QTD = reading.hidden_states(policy, params, batch, chunk_rows)
    return reading.at_decisions(hidden_QTD, batch).astype(jnp.float32)


def fit_head(
    policy: Policy,
    params: Params,
    hidden_BKD: jax.Array,
    batch: Batch,
    target_BKA: jax.Array,
    is_labelled_BK: jax.Array,
    *,
    steps: int,
    learning_rate: float,
) -> tuple[Params, jax.Array]:
    """Fit the head's parameters to soft targets. Returns all parameters and the loss."""
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    head = {name: params[name] for name in HEAD if name in params}
    start = head

    def loss_of(head: Params) -> jax.Array:
        logits_BKA = policy.apply(
            {"params": {**params, **head}},
            hidden_BKD,
            batch.features_BKF,
            method=Policy.action_logits,
        )
        logp_BKA = jax.nn.log_softmax(jnp.where(batch.legal_BKA, logits_BKA, -1e30), axis=-1)
        # 0 * -1e30 at illegal actions is 0; their targets are 0 too.
        surprise_BK = -jnp.sum(target_BKA * jnp.maximum(logp_BKA, -1e4), axis=-1)
        moved = sum(
            jnp.sum((a - b) ** 2)
            for a, b in zip(jax.tree.leaves(head), jax.tree.leaves(start), strict=True)
        )
        return masked_mean(surprise_BK, is_labelled_BK) + PULL * moved

    def step(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        head, state = carry
        loss, gradient = jax.value_and_grad(loss_of)(head)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(head, updates), state), loss

    (head, _), loss = jax.lax.scan(step, (head, optimizer.init(head)), None, length=steps)
    return {**params, **head}, loss[-1]
