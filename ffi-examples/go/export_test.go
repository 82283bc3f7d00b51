package inflight

// Handles returns how many schedulers and submitters have not been closed.
func Handles() int64 { return handles.Load() }
