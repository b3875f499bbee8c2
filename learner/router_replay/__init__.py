"""Router replay: the trainer's MoE layers use recorded experts, such as those chosen while the tokens were generated.

    with recorded(model) as recording:         # R2: the routes of the proximal pass itself
        model(input_ids)
    with replayed(model, recording.routes) as router_replay:
        logits = model(input_ids).logits
    loss(logits).backward()                    # recomputed layers use the same routes
    router_replay.flips().share                # how often native routing would have chosen other experts

Routes are integers `[tokens, moe_layers, top_k]`: tokens in the order of the flattened `[batch, sequence]` input
(padding included), MoE layers from first to last. −1 in all top_k slots of a token and layer: native routing there.
"""

from learner.router_replay.families import FAMILIES, RouterFamily, moe_routers
from learner.router_replay.record import RouteRecording, recorded
from learner.router_replay.reroute import RouterReplay, replayed
from learner.router_replay.statistics import FlipStatistics

__all__ = [
    "FAMILIES",
    "FlipStatistics",
    "RouteRecording",
    "RouterFamily",
    "RouterReplay",
    "moe_routers",
    "recorded",
    "replayed",
]
