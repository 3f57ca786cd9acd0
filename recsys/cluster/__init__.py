"""Where one machine is not enough: training under Ray Train, embedding under Ray Data, on a cluster or workers here."""
