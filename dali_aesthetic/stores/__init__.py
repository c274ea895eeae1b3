"""Object stores: where bytes come from and go to that lie on no disk. Every other room asks here, by URL."""
