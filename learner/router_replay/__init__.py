"""Router replay: the trainer's MoE layers use the experts that were recorded while the tokens were generated.

    with recorded(model) as record:            # R2: the proximal pass's own routes
        model(input_ids)
    with replayed(model, record.routes) as replay:
        logits = model(input_ids).logits
    loss(logits).backward()                    # recomputed layers see the same routes
    replay.flips().share                       # how often native routing would have differed

Routes are `[tokens, moe_layers, top_k]`, tokens in the order of the flattened `[batch, sequence]` input (padding
included), MoE layers from first to last; −1 in all of a token's slots of a layer routes it natively there.
"""

from learner.router_replay.families import FAMILIES, RouterFamily, moe_routers
from learner.router_replay.record import Record, recorded
from learner.router_replay.reroute import RouterReplay, replayed
from learner.router_replay.statistics import FlipStatistics

__all__ = [
    "FAMILIES",
    "FlipStatistics",
    "Record",
    "RouterFamily",
    "RouterReplay",
    "moe_routers",
    "recorded",
    "replayed",
]
