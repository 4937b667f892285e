"""The packages of requirements-evaluate.lock."""

from __future__ import annotations

import site

from omniportrait import environment

LAYER = environment.ensure_layer(environment.EVALUATE_LOCK)
site.addsitedir(str(environment.packages_of(LAYER.parents[1])))
