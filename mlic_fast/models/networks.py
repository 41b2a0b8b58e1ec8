"""The networks of the models in one table.

Packing, profiles, counts of products and of launches read it; a context that is added to the models
is added here once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mlic_fast.models.config import MlicConfig
from mlic_fast.models.parity import Parity


class Source(IntEnum):
    """What a network concatenates at its input, in the order in which coding comes to know it.

    That is also the order of the sums on the exact path (docs/arithmetic.md, section 6).
    """

    HYPER = 0  # h_s, 2M channels: scales, then means
    MEANS = 1  # the means of h_s, M channels
    BEFORE = 2  # the slices before this one, C channels each
    CURRENT = 3  # this slice, C channels
    INTER = 4  # the global context across slices, 2C channels
    CHANNEL = 5  # the channel context, 4C channels
    LOCAL = 6  # the local context, 2C channels
    INTRA = 7  # the global context within the slice, 2C channels


@dataclass(frozen=True)
class Network:
    """Modules of one kind: one module, or one for each slice.

    ``joining``: the layers that take the concatenation of ``sources``, by their names within the
    module; ``sources`` are in the float model's order. ``parity``: the pass that needs it.
    ``methods``: those of :class:`mlic_fast.engine.operations.Operations` that compute it.
    """

    module: str
    title: str
    methods: tuple[str, ...] = ()
    parity: Parity | None = None
    sources: tuple[Source, ...] = ()
    joining: tuple[str, ...] = ()


NETWORKS = {
    network.module: network
    for network in (
        Network("g_a", "g_a"),
        Network("h_a", "h_a"),
        Network("h_s", "h_s", ("hyper_synthesis",)),
        Network("g_s", "g_s"),
        Network(
            "channel_context",
            "channel context",
            ("channel_context",),
            Parity.ANCHOR,
            (Source.BEFORE,),
            ("fushion.0",),
        ),
        Network(
            "global_inter_context",
            "global inter context",
            ("inter_context", "inter_attention"),
            Parity.ANCHOR,
            (Source.BEFORE,),
            ("queries.0", "keys.0", "values.0"),
        ),
        Network("local_context", "local context", ("local_context",), Parity.NON_ANCHOR),
        Network(
            "global_intra_context",
            "global intra context",
            ("intra_context", "intra_queries_and_keys"),
            Parity.NON_ANCHOR,
        ),
        Network(
            "entropy_parameters_anchor",
            "entropy parameters",
            ("entropy_parameters",),
            Parity.ANCHOR,
            (Source.INTER, Source.CHANNEL, Source.HYPER),
            ("fusion.0",),
        ),
        Network(
            "entropy_parameters_nonanchor",
            "entropy parameters",
            ("entropy_parameters",),
            Parity.NON_ANCHOR,
            (Source.LOCAL, Source.INTRA, Source.INTER, Source.CHANNEL, Source.HYPER),
            ("fusion.0",),
        ),
        Network(
            "lrp_anchor",
            "latent residual prediction",
            ("predict_residual",),
            Parity.ANCHOR,
            (Source.MEANS, Source.BEFORE, Source.CURRENT),
            ("lrp_transform.0",),
        ),
        Network(
            "lrp_nonanchor",
            "latent residual prediction",
            ("predict_residual",),
            Parity.NON_ANCHOR,
            (Source.MEANS, Source.BEFORE, Source.CURRENT),
            ("lrp_transform.0",),
        ),
    )
}

#: Prefixes of weights that are no part of the entropy path.
TRANSFORMS = ("g_a.", "g_s.", "h_a.", "gain.")

#: Methods of Operations that are whole networks.
METHODS = frozenset(method for network in NETWORKS.values() for method in network.methods)


def module_of(method: str, i: int | None, parity: Parity | None) -> str:
    """The module that a method of Operations computes: of slice ``i``, for the pass of a colour."""
    of_method = [each for each in NETWORKS.values() if method in each.methods]
    network = next((each for each in of_method if each.parity is parity), of_method[0])
    return network.module if i is None else f"{network.module}.{i}"


def split_name(layer: str) -> tuple[Network | None, int | None, str]:
    """Network, slice and name within the module of a layer, as ``lrp_anchor.3.lrp_transform.0``.

    The network is None for a name that belongs to none; the slice is None where a network has one
    module for all slices.
    """
    module, _, rest = layer.partition(".")
    network = NETWORKS.get(module)
    if network is None or network.parity is None:
        return network, None, rest
    index, _, rest = rest.partition(".")
    return network, int(index) if index else None, rest


def inputs(config: MlicConfig, module: str, i: int) -> list[tuple[Source, int]]:
    """The tensors that a network of slice ``i`` concatenates and their channels, as in float."""
    c = config.slice_channels
    channels = {
        Source.HYPER: 2 * config.M,
        Source.MEANS: config.M,
        Source.BEFORE: c,
        Source.CURRENT: c,
        Source.INTER: 2 * c,
        Source.CHANNEL: 4 * c,
        Source.LOCAL: 2 * c,
        Source.INTRA: 2 * c,
    }
    count = dict.fromkeys(Source, 1) | {Source.BEFORE: i}
    if i == 0:
        count |= dict.fromkeys((Source.INTER, Source.CHANNEL, Source.INTRA), 0)
    if config.variant == "mlic":
        count[Source.INTER] = 0
    sources = NETWORKS[module].sources
    return [(source, channels[source]) for source in sources for _ in range(count[source])]


def exact_inputs(config: MlicConfig, layer: str, channels: int) -> list[slice]:
    """Which input channels of a layer are one input on the exact path, in the order of the sums."""
    network, i, name = split_name(layer)
    if network is None or name not in network.joining:
        return [slice(0, channels)]
    assert i is not None
    found, start = [], 0
    for source, width in inputs(config, network.module, i):
        found.append((source, slice(start, start + width)))
        start += width
    assert start == channels
    return [part for _, part in sorted(found, key=lambda each: each[0])]
