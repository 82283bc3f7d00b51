module inflight.dev/inflight

go 1.21
