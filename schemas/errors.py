"""The errors a user can meet, and the exit code each one ends a command with.

    ReelyardError                     exit 1: the work could not be done
    |- UsageError                     exit 2: the command was asked for something that makes no sense
    |  `- ConfigError                 a config file or --set override is wrong
    |- DataError                      a file on disk is not what it should be
    |  |- SchemaError                 a table of another version, or with other columns
    |  |- PlanError                   a plan that is broken, or does not fit the samples or the run
    |  `- ShardError                  a tar member missing, damaged or of another clip
    |- ModelMissingError              weights that are not on this machine
    |- PreflightError                 resources, tools or permissions that a run would need
    `- ServiceError                   a server that the work needs is gone, or refuses all of it

Every message says what is wrong (value), what was expected, where it came from (file: key) and what to do. `assert` is for invariants only.
"""

__all__ = [
    "ConfigError",
    "DataError",
    "ModelMissingError",
    "PlanError",
    "PreflightError",
    "ReelyardError",
    "SchemaError",
    "ServiceError",
    "ShardError",
    "UsageError",
]


class ReelyardError(Exception):
    """Any error with a message written for the user; ends a command with exit code 1."""

    exit_code = 1


class UsageError(ReelyardError, ValueError):
    """The command line asks for something impossible; exit code 2."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value is unknown, of the wrong type, or contradicts another one."""


class DataError(ReelyardError, ValueError):
    """A file is not what it should be."""


class SchemaError(DataError):
    """A table has another schema version, or lacks columns."""


class PlanError(DataError):
    """A plan is broken, or does not belong to these samples or this world size."""


class ShardError(DataError):
    """A shard or one of its members is missing, damaged, or holds another clip."""


class ModelMissingError(ReelyardError):
    """Weights are not on this machine, and nothing may be downloaded without being asked."""


class PreflightError(ReelyardError):
    """The run cannot start: resources, tools, weights, disk or permissions are missing."""


class ServiceError(ReelyardError):
    """A server that the work needs does not answer, or refuses whatever it is asked; no single item is to blame."""
