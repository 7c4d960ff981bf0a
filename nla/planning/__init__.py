"""What a run will need before anything is loaded: parameters, memory, time, cost. Formulas: docs/guides/planning.md.

shapes    what a model is, from its Hugging Face config alone
work      the tokens that each stage puts through each model
flops     arithmetic of one step
memory    bytes per GPU, by phase of a step
task      one stage of a run: memory and seconds of a step on a device
plan      all of it for a composed config, with advice; table and JSON

May import `nla.config` and below; reads no data. Public: `nla.planning.plan.make_plan`, imported by its module.
"""
