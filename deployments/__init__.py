"""What a Prefect server of ours must hold, and the script that brings it there."""
