"""The one door to CASA and casacore: tables in this process, tasks in child processes."""

from nightbeam.casa.model import TASKS, CasaCall
from nightbeam.casa.remote import air_layers, run_casa
from nightbeam.casa.tables import open_table

__all__ = ["TASKS", "CasaCall", "air_layers", "open_table", "run_casa"]
