"""What a Prefect server of ours must hold, and the scripts that bring it there."""
