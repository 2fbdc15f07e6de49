"""What a training run will take, in days, dollars and gigabytes: ``from lit_llm.plan import
plan``."""

from lit_llm.plan.solve import Plan, advise, plan

__all__ = ["Plan", "advise", "plan"]
