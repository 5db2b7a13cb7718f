"""Studies: what is asked of trained models once all runs of an experiment are finished."""
