"""Look at what adding variables to a VA-MoE would do to its tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wxlab.errors import WxlabError
from wxlab.plots.experts import plot_tensors
from wxlab.plots.losses import in_notebook

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wxlab.models.vamoe import VAMoE

CANDIDATES = (
    "specific_humidity", "u_component_of_wind", "v_component_of_wind", "temperature", "geopotential", "vertical_velocity",
    "2m_temperature", "10m_u_component_of_wind", "10m_v_component_of_wind", "mean_sea_level_pressure", "surface_pressure",
)  # fmt: skip


def explore_extension(model: VAMoE, candidates: Sequence[str] | None = None) -> Any:
    """Add variables and see which tensors are new, carried over, frozen: in a notebook a widget, elsewhere its first view.

    model: a VA-MoE, which is left as it is.  candidates: variables to choose from; None: common ones that the model lacks. Those on
    levels come at the model's levels, and not at all where it has none.
    Returns a widget in Jupyter (headless runs keep its first view as a picture), else the Figure.
    Raises WxlabError for a model without experts of variables, and when no candidate is new.
    """
    from wxlab.channels import LEVEL_VARIABLES, belongs, split_channel
    from wxlab.models.vamoe.network import require_vamoe

    model = require_vamoe(model, "cannot be extended")
    names = [name for name in candidates or CANDIDATES if not any(belongs(channel, name) for channel in model.spec.channels)]
    if not any(split_channel(channel)[1] for channel in model.spec.channels):  # nothing says at which levels
        names = [name for name in names if name not in LEVEL_VARIABLES]
    if not names:
        raise WxlabError("the model has all of the candidates already; name others")
    if not in_notebook():
        return extension_figure(model, names[:1])
    from wxlab.plots.extension_widget import ExtensionExplorer

    return ExtensionExplorer(model, names)


def extension_figure(model: VAMoE, variables: Sequence[str], freeze: str = "coded") -> Figure:
    """The picture of a choice."""
    import torch

    from wxlab.models.vamoe import describe, extend
    from wxlab.models.vamoe.network import build, require_vamoe

    require_vamoe(model, "cannot be extended")
    with torch.device("meta"):  # sizes only
        shadow = build(model.spec, **model.config)
    return plot_tensors(describe(extend(shadow, list(variables), freeze=freeze)))  # type: ignore[arg-type]
