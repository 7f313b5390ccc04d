"""What anybody's ablations need: configs, grids, sweeps, results, tables, a demo and the command line."""
