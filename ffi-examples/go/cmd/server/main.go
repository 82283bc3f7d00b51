// Server streams completions of the toy model over HTTP: many clients, one batch.
//
//	POST /v1/completions   {"prompt": "...", "max_tokens": 32, "stream": true, "stop": "."}
//	GET  /metrics          counters and state, for Prometheus
//	GET  /health           200, or 503 while shutting down
package main

import (
	"context"
	"errors"
	"flag"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/toy"
)

func main() {
	address := flag.String("listen", "127.0.0.1:8080", "address to listen on")
	blocks := flag.Int("blocks", 1024, "blocks of the KV cache, 16 tokens each")
	seqs := flag.Int("seqs", 64, "requests that run at once")
	waiting := flag.Int("waiting", 256, "requests that may wait; 429 beyond")
	latency := flag.Duration("latency", 10*time.Millisecond, "how long the model takes for a step")
	grace := flag.Duration("grace", 30*time.Second, "how long requests may take to end at shutdown")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	config := inflight.Config{NumBlocks: *blocks, MaxNumSeqs: *seqs, MaxWaiting: *waiting}
	model := toy.New(config)
	model.Latency = *latency
	listener, err := net.Listen("tcp", *address)
	if err == nil {
		slog.Info("listening", "address", listener.Addr().String(), "inflight", inflight.Version())
		err = serve(ctx, listener, inflight.EngineConfig{Scheduler: config}, model, *grace)
	}
	if err != nil {
		slog.Error("stopped", "error", err)
		os.Exit(1)
	}
	slog.Info("stopped")
}

// serve answers until ctx ends, then lets requests end for as long as grace.
func serve(ctx context.Context, listener net.Listener, config inflight.EngineConfig,
	model inflight.Model, grace time.Duration) error {
	engine, err := inflight.NewEngine(config, model)
	if err != nil {
		_ = listener.Close()
		return err
	}
	server := &http.Server{Handler: newHandler(engine), ReadHeaderTimeout: 10 * time.Second}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	late, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	// The engine first: what comes on open connections meanwhile is told so.
	err = errors.Join(err, engine.Shutdown(late))
	// Handlers have only to write what their streams hold.
	last, cancelLast := context.WithTimeout(context.Background(), writeTimeout)
	defer cancelLast()
	if err := server.Shutdown(last); err != nil {
		_ = server.Close()
	}
	return err
}
