"""The court: reads labelled traces, lets detectors see them, and counts what each found."""
