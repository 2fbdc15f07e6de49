"""Planner: days, dollars and memory of a training run (``from lit_llm.plan import plan``)."""

from lit_llm.plan.solve import Plan, advise, plan

__all__ = ["Plan", "advise", "plan"]
