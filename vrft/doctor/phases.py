"""Estimate the GPU memory of each phase of a run.

The formulas count the tensors that a layer of a Hugging Face model keeps for its backward, and the largest temporary
tensors. H is the hidden size, I the size of the MLP, V the vocabulary size, L prompt tokens, T completion tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from vrft.doctor.shape import FLOAT32_BYTES, ModelShape

GB = 1e9
LOGITS_CHUNK = 1024
"""Number of completion tokens whose logits exist at the same time."""

ROOM = 128
"""Caches reserve room for prompts in multiples of this number of tokens."""

LOGITS_COPIES = 2
"""Simultaneous float32 copies of logits: logits and probabilities. A rollout also holds the head's output."""

SORTED_COPIES = 4.25
"""Simultaneous float32 copies of logits while top-p sorts them: these, and sums, ids (int64) and a mask in their order.

The stand-in does not count what a kernel allocates itself. CUDA's sort allocates several copies more.
"""


class Stored(NamedTuple):
    """Bytes and numbers of stored weights."""

    trained: int  # number of trained weights
    frozen: float  # bytes of frozen weights
    reference: float  # bytes of a separate reference model on the GPU
    copied: int  # number of weights of linear layers that rollouts copy for decoding
    optimizer: float  # bytes of optimizer state per trained weight
    tower_trains: bool
    modules: int = 0  # number of weights in whole modules that train in addition to adapters
    item: int = FLOAT32_BYTES  # bytes of a trained weight


class Part(NamedTuple):
    """Prompts and completions of one forward pass."""

    prompts: int
    rows: int
    tokens: int  # in all prompts and completions


class Workload(NamedTuple):
    """The work of a step and of an evaluation."""

    prompts: int  # in a rollout and an update
    evaluated: int  # prompts in a batch of an evaluation
    sampled: int  # completions per prompt in a rollout
    generations: int  # completions per prompt in an update
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    micro_batch: int
    rollouts: int = 1  # per step, including those of dynamic sampling
    sorts: bool = False  # whether rollouts sort the vocabulary, for top-p

    def largest_part(self) -> Part:
        """Return the largest micro-batch: whole groups, or part of a single group that exceeds the limit."""
        length, longest = self.prompt_tokens, self.completion_tokens
        group = length + self.generations * longest
        prompts = max(min(self.prompts, self.micro_batch // group), 1)
        rows = prompts * self.generations
        if group > self.micro_batch:
            rows = min(max((self.micro_batch - length) // max(longest, 1), 1), self.generations)
        return Part(prompts, rows, prompts * length + rows * longest)


class Estimate(NamedTuple):
    """Bytes on the GPU."""

    stays: dict[str, float]  # bytes that stay allocated during a run
    phases: dict[str, float]  # peak of each phase, including `stays`

    @property
    def peak(self) -> float:
        """The maximum over all phases."""
        return max(self.phases.values())


class Phases:
    """The memory of a run, given the sizes of the model and the workload."""

    def __init__(self, stored: Stored, shape: ModelShape, load: Workload, *, lora: bool, checkpointing: bool) -> None:
        self.stored, self.shape, self.load = stored, shape, load
        self.lora, self.checkpointing = lora, checkpointing
        self.decodes = True
        """Whether rollouts decode in this process."""
        self.other_processes: dict[str, float] = {}
        """Bytes of other processes on the same GPU."""
        self.awake = 0.0
        """Bytes of a server on the same GPU while it samples, when optimizer states and reference are offloaded."""
        # trained embeddings keep their dtype, which the residual stream inherits and norms save for the backward
        self.residual = shape.hidden * (shape.bytes if lora else stored.item)

    def estimate(self) -> Estimate:
        """Return the bytes that stay allocated and the peak of each phase."""
        stored, shape, load = self.stored, self.shape, self.load
        sampled = load.prompts, load.sampled, load.sorts
        gradients = stored.item * stored.trained
        stays = {
            "policy": stored.item * stored.trained + stored.frozen,
            "optimizer": stored.optimizer * stored.trained,
            "reference": stored.reference,
            "decoding weights": float(shape.bytes * stored.copied),
            "keys, values and graphs": self.recorded(*sampled) + self.recorded(load.evaluated, 1),
            "images": self.images(),
        } | self.other_processes
        if not self.decodes:
            stays |= {"decoding weights": 0.0, "keys, values and graphs": 0.0}
        part, used = load.largest_part(), sum(stays.values())
        waiting, beside_server = self.waiting_features(), stays["policy"] + stays["images"] + self.awake
        phases = {
            "load": stays["policy"] + stored.reference,
            "rollout": beside_server if self.awake else used + self.rollout(*sampled) + waiting,
            "reference": used + self.without_gradients(part.tokens, part.rows * load.completion_tokens),
            "update": used + gradients + self.update(part),
            "evaluation": beside_server if self.awake else used + self.rollout(load.evaluated, 1),
        }
        return Estimate(stays | {"gradients": gradients}, phases)

    def images(self) -> float:
        """Return the bytes of images: the pixels of all rollouts, and the features that an update uses."""
        pixels = self.shape.tower.patches * self.shape.tower.pixels * FLOAT32_BYTES
        return self.load.rollouts * self.load.prompts * self.load.image_tokens * pixels + self.features()

    def features(self) -> float:
        """Return the bytes of a rollout's image features, which are kept if the vision tower is frozen."""
        tokens = self.load.prompts * self.load.image_tokens
        return 0.0 if self.stored.tower_trains else float(tokens * self.shape.hidden * self.shape.bytes)

    def waiting_features(self) -> float:
        """Return the bytes of the features of earlier rollouts, from which dynamic sampling has yet to choose."""
        return (self.load.rollouts - 1) * self.features()

    def recorded(self, prompts: int, group: int, sorts: bool = False) -> float:
        """Return the bytes that CUDA graphs of one shape keep: keys, values, states and the tensors of a step."""
        room = -(-self.load.prompt_tokens // ROOM) * ROOM
        tokens = prompts * (room + group * self.load.completion_tokens)
        kept = tokens * self.shape.key_values * self.shape.bytes + prompts * group * self.shape.states
        return kept + self.decoded_token(prompts * group, room, sorts)

    def decoded_token(self, rows: int, room: int, sorts: bool) -> float:
        """Return the bytes of the largest tensors of a decoding step: logits of all rows, or scores of a layer."""
        shape, copies = self.shape, SORTED_COPIES if sorts else LOGITS_COPIES
        logits = rows * shape.vocabulary * (copies * FLOAT32_BYTES + shape.bytes)
        keys = room + self.load.completion_tokens
        return max(logits, rows * shape.heads * keys * (2 * shape.bytes + FLOAT32_BYTES))

    def rollout(self, prompts: int, group: int, sorts: bool = False) -> float:
        """Return the bytes of a rollout in addition to those that stay allocated."""
        if not self.decodes:
            return 0.0
        tokens = prompts * self.load.prompt_tokens
        cache = tokens * self.shape.key_values * self.shape.bytes
        room = -(-self.load.prompt_tokens // ROOM) * ROOM
        first_token = self.decoded_token(prompts * group, room, sorts)  # before a graph is recorded
        return cache + max(self.without_gradients(tokens, 0), self.encoded(prompts), first_token)

    def encoded(self, prompts: int) -> float:
        """Return the bytes of encoding images without gradients, for all prompts at once if the tower trains."""
        tower, item = self.shape.tower, self.shape.bytes
        patches = (prompts if self.stored.tower_trains else 1) * self.load.image_tokens * tower.patches
        mlp = (3 if tower.is_gated else 2) * tower.intermediate
        joined = FLOAT32_BYTES if self.stored.tower_trains else 0
        return patches * (max(4 * tower.hidden + mlp, tower.pixels) * item + tower.pixels * joined)

    def without_gradients(self, tokens: int, completion_tokens: int) -> float:
        """Return the bytes of a forward without gradients: the larger of one layer's MLP and the logits."""
        shape = self.shape
        layer = tokens * (2 * self.residual + (shape.hidden + 3 * shape.intermediate) * shape.bytes)
        logits = LOGITS_COPIES * min(completion_tokens, LOGITS_CHUNK) * shape.vocabulary * FLOAT32_BYTES
        return max(layer, tokens * self.residual + logits)

    def update(self, part: Part) -> float:
        """Return the bytes that the forward and backward of a micro-batch take in addition to gradients."""
        shape, layer, block = self.shape, self.layer(part), self.block(part)
        ends = 2 * part.tokens * self.residual + self.patches(part) * shape.tower.pixels * shape.bytes
        head = min(self.casts(), shape.vocabulary * shape.hidden * shape.bytes)
        cast = (self.casts() - head) / shape.layers  # the weights of a layer
        # a layer's backward ends with the gradients of its weights in both dtypes
        gradients = cast / shape.bytes * (shape.bytes + self.stored.item)
        if not self.checkpointing:
            kept = layer * (shape.layers - 1) + block * shape.tower.blocks + cast * (shape.layers - 1)
            return ends + kept + max(layer + cast + head + self.logits(part), gradients)
        kept = part.tokens * self.residual * shape.layers
        kept += self.patches(part) * shape.tower.hidden * shape.bytes * shape.tower.blocks
        # logits are freed before a layer is recomputed, with its weights and the gradients of its largest tensors
        repeated = cast + 1.15 * max(layer, block)
        return ends + kept + max(head + max(self.logits(part), repeated), gradients)

    def logits(self, part: Part) -> float:
        """Return the bytes of logits, or of their gradient and the gradient of a trained head."""
        shape = self.shape
        logits = min(part.rows * self.load.completion_tokens, LOGITS_CHUNK) * shape.vocabulary
        frozen = self.lora and not self.stored.modules  # the head may be one of the trained modules
        gradients = 0 if frozen else logits * shape.bytes + shape.vocabulary * shape.hidden * self.stored.item
        capped = shape.bytes if shape.caps_logits else 0
        return max(logits * (LOGITS_COPIES * FLOAT32_BYTES + capped), gradients)

    def casts(self) -> float:
        """Return the bytes of trained weights cast to the compute dtype, which are kept for the backward."""
        if self.shape.bytes == self.stored.item:
            return 0
        return (self.stored.modules if self.lora else self.stored.copied) * self.shape.bytes

    def layer(self, part: Part) -> float:
        """Return the bytes that the backward of a layer needs."""
        shape, length = self.shape, self.load.prompt_tokens
        copies = 5 if self.lora and shape.bytes < FLOAT32_BYTES else 2  # each adapter casts its input
        inputs = copies * shape.hidden + shape.queries + 4 * shape.intermediate
        attention = 2 * shape.queries + 2 * shape.keys
        token = 2 * self.residual + (inputs + attention) * shape.bytes
        keys = shape.queries if shape.repeats_keys else shape.keys
        # the keys of a prompt are repeated for each of its completions
        repeated = part.rows * (length + self.load.completion_tokens) + shape.repeats_keys * part.prompts * length
        return part.tokens * token + 2 * repeated * keys * shape.bytes

    def patches(self, part: Part) -> float:
        """Return the number of patches whose activations are kept."""
        return part.prompts * self.load.image_tokens * self.shape.tower.patches * self.stored.tower_trains

    def block(self, part: Part) -> float:
        """Return the bytes that the backward of a block of a trained vision tower needs."""
        tower, item = self.shape.tower, self.shape.bytes
        norms = 2 * tower.hidden * (item if tower.is_gated else FLOAT32_BYTES)  # a layer norm computes in float32
        mlp = (4 if tower.is_gated else 2) * tower.intermediate
        return self.patches(part) * (norms + (8 * tower.hidden + mlp) * item)
