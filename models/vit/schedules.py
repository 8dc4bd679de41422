"""Token schedules: how many tokens each layer of a Vision Transformer adds or merges away.

Thesis chapter 3 speaks of one number gamma per batch (here ``token_delta``): positive adds that many prompts,
negative merges that many tokens in every layer, and Section 3.4.2 replaces the constant by one number per layer.
A schedule gives both, per layer, and may begin with fewer, larger patches. It knows the merges that remain once a
layer runs out of tokens. Two names for the same forward pass are refused, because a planner would measure and choose
between them in vain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

PromptMode = Literal["replace", "accumulate"]
"""``replace``: every layer swaps the prompts of the layer before for its own (VPT-deep, arXiv 2203.12119);
``accumulate``: every layer adds its own, as the thesis' throughputs imply."""

THESIS_TOKEN_DELTAS = (-20, -15, -10, -5, 0, 2, 4, 8)
"""Section 3.6."""

LAYER_WISE_SCHEMES = {1: (20, 12), 2: (25, 2), 3: (23, 3), 4: (22, 4)}
"""Section 3.4.2, token_delta -20 of 12 layers: scheme -> (merges in the first layers, how many layers)."""

SPARED_LAYERS = 4
"""The last layers, where schemes 2 to 4 merge nothing."""


@dataclass(frozen=True, slots=True)
class TokenSchedule:
    """The token counts of one forward pass.

    Attributes:
        merges: tokens to merge away, per layer, between attention and MLP.
        prompts: prompt tokens that every layer gets before its attention.
        prompt_mode: what happens to the prompts of the layer before.
        grid: patches per side of the image, fewer and larger ones than the weights' own; 0 for those.
        int8: the linear layers multiply in int8, by an engine that can; the network in torch knows nothing of it.

    Raises:
        ValueError: a negative count, or prompts in int8, of whose values nothing is known beforehand.
    """

    merges: tuple[int, ...]
    prompts: int = 0
    prompt_mode: PromptMode = "replace"
    grid: int = 0
    int8: bool = False

    def __post_init__(self) -> None:
        if min(self.prompts, self.grid, *self.merges) < 0:
            counts = f"{self.merges}, {self.prompts} and {self.grid}"
            raise ValueError(f"schedule: counts must not be negative, got {counts}")
        if self.prompt_mode not in ("replace", "accumulate"):
            raise ValueError(f"prompt_mode: {self.prompt_mode!r} is neither replace nor accumulate")
        if self.int8 and self.prompts:
            raise ValueError(f"schedule: {self.prompts} prompts do not go with int8")

    @property
    def name(self) -> str:
        """Short and unique: ``0``, ``-20`` (constant), ``+4``, ``+4a`` (accumulated), ``m22x4-20x4-0x4``,
        ``g10-5`` (10 x 10 patches); with a ``q`` behind it in int8."""
        parts = []
        if self.prompts:
            parts.append(f"+{self.prompts}{'a' if self.prompt_mode == 'accumulate' else ''}")
        if self.grid:
            parts.append(f"g{self.grid}")
        if any(self.merges):
            parts.append(
                f"-{self.merges[0]}" if len(set(self.merges)) == 1 else f"m{_run_lengths(self.merges)}"
            )
        return ("".join(parts) or "0") + "q" * self.int8


def constant_schedule(token_delta: int, layers: int, prompt_mode: PromptMode = "replace") -> TokenSchedule:
    """The thesis' gamma: the same change in each of ``layers`` layers."""
    merged = max(-token_delta, 0)
    return TokenSchedule((merged,) * layers, max(token_delta, 0), prompt_mode)


def layer_wise_schedule(scheme: int, base: int = 20, layers: int = 12) -> TokenSchedule:
    """Schemes 1 to 4 of Section 3.4.2; the middle layers, which the thesis does not specify, merge ``base``.

    Raises:
        ValueError: an unknown scheme, or too few layers for its first and last ones.
    """
    if scheme not in LAYER_WISE_SCHEMES:
        raise ValueError(f"scheme: {scheme} is not one of {', '.join(map(str, LAYER_WISE_SCHEMES))}")
    first, count = LAYER_WISE_SCHEMES[scheme]
    if scheme == 1:
        return TokenSchedule((base,) * layers)
    middle = layers - count - SPARED_LAYERS
    if middle < 0:
        raise ValueError(f"layers: {layers} is too few for scheme {scheme}")
    return TokenSchedule((first,) * count + (base,) * middle + (0,) * SPARED_LAYERS)


def decreasing_schedule(mean: int, layers: int) -> TokenSchedule:
    """From 2 x ``mean`` merges in the first layer straight down to none in the last, rounded down.

    Source: the decreasing schedules of ToMe (arXiv 2210.09461, Section 4).
    """
    if layers == 1:
        return TokenSchedule((mean,))
    return TokenSchedule(tuple(2 * mean * (layers - 1 - at) // (layers - 1) for at in range(layers)))


def first_patches(schedule: TokenSchedule, tokens: int) -> int:
    """Patches in the first layer, of weights that have ``tokens``."""
    return schedule.grid**2 or tokens


def effective_merges(schedule: TokenSchedule, tokens: int) -> tuple[int, ...]:
    """Merges that really happen per layer.

    tokens: the weights' patches; of a schedule with a grid, only those of the grid can merge (class token, register
    tokens and prompts never do). A layer can merge at most every second token, floor(tokens / 2) (ToMe, arXiv
    2210.09461, Section 3).
    """
    done, tokens = [], first_patches(schedule, tokens)
    for wanted in schedule.merges:
        done.append(min(wanted, tokens // 2))
        tokens -= done[-1]
    return tuple(done)


def token_counts(schedule: TokenSchedule, tokens: int, protected: int = 1) -> tuple[int, ...]:
    """The number of tokens in each layer's attention, and last in the final norm (layers + 1 values).

    tokens: the weights' patches. protected: class and register tokens.
    """
    counts, prompts = [], 0
    effective, tokens = effective_merges(schedule, tokens), first_patches(schedule, tokens)
    for merged in effective:
        prompts = prompts + schedule.prompts if schedule.prompt_mode == "accumulate" else schedule.prompts
        counts.append(protected + prompts + tokens)
        tokens -= merged
    return (*counts, protected + prompts + tokens)


def forward_macs(
    schedule: TokenSchedule, tokens: int, width: int, hidden: int, patch_inputs: int = 768, protected: int = 1
) -> int:
    """Multiply-accumulates for one image in patch embedding, linears and attention: the FLOP-ideal of a schedule.

    tokens: the weights' patches, whose embedding costs as much as that of fewer, larger ones. width, hidden: of the
    residual stream and the MLP. patch_inputs: values of one patch, 3 x 16 x 16.
    """
    counts = token_counts(schedule, tokens, protected)
    merged = effective_merges(schedule, tokens)
    total = tokens * patch_inputs * width
    for count, gone in zip(counts[:-1], merged, strict=True):  # merging happens before the MLP
        total += 4 * count * width**2 + 2 * count**2 * width + 2 * (count - gone) * width * hidden
    return total


def check_distinct(schedules: Iterable[TokenSchedule], tokens: int) -> tuple[TokenSchedule, ...]:
    """The schedules as a tuple. Raises ValueError naming two that give the same forward pass, or one with too many
    patches."""
    seen: dict[tuple[int, tuple[int, ...], int, str, bool], TokenSchedule] = {}
    for schedule in schedules:
        first = first_patches(schedule, tokens)
        if first > tokens:
            raise ValueError(f"schedules: {schedule.name} has {first} patches: the weights have {tokens}")
        mode = schedule.prompt_mode if schedule.prompts else ""
        key = (first, effective_merges(schedule, tokens), schedule.prompts, mode, schedule.int8)
        if key in seen:
            raise ValueError(
                f"schedules: {schedule.name} and {seen[key].name} are the same on {tokens} patches: keep one"
            )
        seen[key] = schedule
    return tuple(seen.values())


def default_schedules(layers: int, tokens: int) -> tuple[TokenSchedule, ...]:
    """The default schedules to measure: the thesis' constant ones and two decreasing ones, equal ones once."""
    kept: dict[tuple[tuple[int, ...], int], TokenSchedule] = {}
    constant = (constant_schedule(delta, layers) for delta in THESIS_TOKEN_DELTAS)
    for schedule in (*constant, decreasing_schedule(10, layers), decreasing_schedule(15, layers)):
        kept.setdefault((effective_merges(schedule, tokens), schedule.prompts), schedule)
    return tuple(kept.values())


def default_int8_schedules(layers: int, tokens: int) -> tuple[TokenSchedule, ...]:
    """The schedules to measure in int8, too: nothing merged, and the fastest. In between int8 alone is about as fast as
    merging a few tokens, and loses less."""
    kept: dict[tuple[int, ...], TokenSchedule] = {}
    constant = (constant_schedule(delta, layers) for delta in (-20, -15, 0))
    for schedule in (*constant, decreasing_schedule(15, layers)):
        kept.setdefault(effective_merges(schedule, tokens), replace(schedule, int8=True))
    return tuple(kept.values())


def parse_schedule(text: str, layers: int) -> TokenSchedule:
    """A schedule from its ``name``, for ``layers`` layers; 4 is +4. Raises ValueError showing the forms."""
    rest, prompts, mode, grid = text.removesuffix("q"), 0, "replace", 0
    int8 = rest != text
    try:
        if rest.startswith("+") or (rest.isdigit() and int(rest)):
            rest = f"+{rest.removeprefix('+')}"
            cut = next((at for at, letter in enumerate(rest) if letter in "-mg"), len(rest))
            head, rest = rest[1:cut], rest[cut:] or "0"
            mode = "accumulate" if head.endswith("a") else "replace"
            prompts = int(head.removesuffix("a"))
        if rest.startswith("g"):
            cut = next((at for at, letter in enumerate(rest) if letter in "-m"), len(rest))
            grid, rest = int(rest[1:cut]), rest[cut:] or "0"
        if rest.startswith("m"):
            runs = [part.split("x") for part in rest[1:].split("-")]
            merges = [int(run[0]) for run in runs for _ in range(int(run[1]))]
        else:
            merges = [-int(rest)] * layers
        if len(merges) != layers:
            raise ValueError(f"{len(merges)} layers")
        return TokenSchedule(
            tuple(merges), prompts, "accumulate" if mode == "accumulate" else "replace", grid, int8
        )
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"schedule: {text!r} is not a schedule of {layers} layers: write 0, -20, +4, +4a, m22x4-20x4-0x4, "
            "g10 or g10-5, and 0q or -20q for int8"
        ) from error


def _run_lengths(values: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    return "-".join(f"{value}x{count}" for value, count in runs)
