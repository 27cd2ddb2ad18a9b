"""DSA-110 UVH5 subband files: reading, checking, rotating to one phase centre, converting."""
