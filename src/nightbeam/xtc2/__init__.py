"""LCLS-II data files (.xtc2): datagrams, detectors, and whether a run can be used."""
