"""From YAML to a checked, typed config: schema, checks, composition, launching, run folders, sweeps.

May import `nla.models` and below; knows no data and no training.
Public: `check.check_train`, `check.check_evaluate`, `compose.compose`, `launch.launch`, `schema.TrainSettings`,
`schema.EvaluateSettings`, `run_folder`.
"""

__all__: list[str] = []  # by module, so that importing the room loads neither Hydra nor Lightning
