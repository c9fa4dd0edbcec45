"""Many runs: sweeps on this machine, on SLURM, on TPU VMs and on Kubernetes."""
