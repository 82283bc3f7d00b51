package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"inflight.dev/inflight"
	"inflight.dev/inflight/toy"
)

// TestMain lets the test's binary be the server.
func TestMain(m *testing.M) {
	if os.Getenv("INFLIGHT_SERVER") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func server(t *testing.T, config inflight.Config, latency time.Duration) (*httptest.Server,
	*inflight.Engine) {
	t.Helper()
	model := toy.New(config)
	model.Latency = latency
	engine, err := inflight.NewEngine(inflight.EngineConfig{Scheduler: config}, model)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(newHandler(engine))
	t.Cleanup(func() {
		_ = engine.Close()
		s.Close()
	})
	return s, engine
}

func post(ctx context.Context, client *http.Client, url string, ask completionRequest) (
	*http.Response, error) {
	body, err := json.Marshal(ask)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions",
		bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	return client.Do(r)
}

// read takes the events of a stream, and tells each text; done says that the last one came.
func read(body io.Reader, each func(text string)) (last completion, done bool, err error) {
	lines := bufio.NewScanner(body)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		switch {
		case !ok && lines.Text() != "":
			return last, false, fmt.Errorf("%q is no event", lines.Text())
		case !ok:
		case data == "[DONE]":
			return last, true, nil
		default:
			last = completion{}
			if err := json.Unmarshal([]byte(data), &last); err != nil {
				return last, false, err
			}
			if len(last.Choices) != 1 {
				return last, false, fmt.Errorf("%q has no choice", data)
			}
			each(last.Choices[0].Text)
		}
	}
	return last, false, lines.Err()
}

func metric(t *testing.T, url, name string) string {
	t.Helper()
	r, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^` + name + ` (\d+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in %s", name, text)
	}
	return string(found[1])
}

func TestCompletions(t *testing.T) {
	s, _ := server(t, inflight.Config{NumBlocks: 64}, 0)
	want := toy.Continue("once upon a time", 40)
	ask := completionRequest{Prompt: "once upon a time", MaxTokens: 40, Stream: true}
	r, err := post(context.Background(), s.Client(), s.URL, ask)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var got strings.Builder
	last, done, err := read(r.Body, func(text string) { got.WriteString(text) })
	if err != nil || !done || got.String() != want {
		t.Errorf("%q, %v: not %q", got.String(), err, want)
	}
	reason := last.Choices[0].FinishReason
	if reason == nil || *reason != "length" || last.Usage == nil ||
		last.Usage.CompletionTokens != 40 || last.Usage.PromptTokens != 16 {
		t.Errorf("%+v", last)
	}
	ask.Stream, ask.Stop = false, want[20:21]
	r, err = post(context.Background(), s.Client(), s.URL, ask)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var whole completion
	if err := json.NewDecoder(r.Body).Decode(&whole); err != nil {
		t.Fatal(err)
	}
	cut := want[:strings.Index(want, ask.Stop)+1]
	if whole.Choices[0].Text != cut || *whole.Choices[0].FinishReason != "stop" {
		t.Errorf("%+v: not %q", whole, cut)
	}
	if metric(t, s.URL, "inflight_finished_total") != "2" {
		t.Error("2 requests have finished")
	}
}

func TestWhatIsRefused(t *testing.T) {
	s, engine := server(t, inflight.Config{NumBlocks: 64, MaxModelLen: 100}, 0)
	for name, c := range map[string]struct {
		method, path, body string
		code               int
		field              string
	}{
		"method":  {"GET", "/v1/completions", "", 405, ""},
		"path":    {"GET", "/v2", "", 404, ""},
		"body":    {"POST", "/v1/completions", "{", 400, ""},
		"huge":    {"POST", "/v1/completions", strings.Repeat(" ", maxBody+1), 400, ""},
		"prompt":  {"POST", "/v1/completions", "{}", 400, "prompt"},
		"long":    {"POST", "/v1/completions", `{"prompt":"` + strings.Repeat("x", 100) + `"}`, 400, ""},
		"health":  {"GET", "/health", "", 200, ""},
		"metrics": {"GET", "/metrics", "", 200, ""},
	} {
		r, err := http.NewRequest(c.method, s.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		var p problem
		_ = json.NewDecoder(answer.Body).Decode(&p)
		_ = answer.Body.Close()
		if answer.StatusCode != c.code || p.Error.Field != c.field ||
			c.code == 400 && p.Error.Message == "" {
			t.Errorf("%s: %s, %+v", name, answer.Status, p)
		}
	}
	if err := engine.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	r, err := post(context.Background(), s.Client(), s.URL, completionRequest{Prompt: "p"})
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
		t.Error(r.Status)
	}
	if r, err = http.Get(s.URL + "/health"); err != nil || r.StatusCode != 503 {
		t.Error(r, err)
	}
	_ = r.Body.Close()
}

// Hundreds of clients, some of which leave, some of which are turned away: what is answered is right,
// and nothing stays behind.
func TestManyClients(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	config := inflight.Config{NumBlocks: 96, MaxNumSeqs: 32, MaxWaiting: 96, MaxNumBatchedTokens: 256}
	s, engine := server(t, config, 200*time.Microsecond)
	client := s.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = 16
	const clients, each = 300, 3
	var completed, left, refused atomic.Int64
	var group sync.WaitGroup
	for c := 0; c < clients; c++ {
		group.Add(1)
		go func(c int) {
			defer group.Done()
			random := rand.New(rand.NewSource(int64(c)))
			for i := 0; i < each; i++ {
				switch err := visit(s.URL, client, random, c); err {
				case nil:
					completed.Add(1)
				case errLeft:
					left.Add(1)
				case errRefused:
					refused.Add(1)
					time.Sleep(10 * time.Millisecond)
				default:
					t.Errorf("client %d: %v", c, err)
				}
			}
		}(c)
	}
	group.Wait()
	t.Logf("%d completed, %d left, %d refused", completed.Load(), left.Load(), refused.Load())
	if sum := completed.Load() + left.Load() + refused.Load(); sum != clients*each {
		t.Errorf("%d of %d visits ended", sum, clients*each)
	}
	if completed.Load() == 0 || left.Load() == 0 {
		t.Error("some are meant to complete, and some to leave")
	}
	eventually(t, "requests are left", func() bool {
		stats := engine.Stats()
		return stats.NumRunning+stats.NumWaiting == 0 && stats.NumFreeBlocks == config.NumBlocks-1
	})
	eventually(t, "answers are open", func() bool {
		return metric(t, s.URL, "http_completions_open") == "0"
	})
	stats := engine.Stats()
	if int64(stats.Finished) < completed.Load() || stats.Cancelled == 0 {
		t.Errorf("%+v", stats)
	}
	if err := engine.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	s.Close()
	http.DefaultClient.CloseIdleConnections()
	eventually(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= goroutines })
}

var (
	errLeft    = fmt.Errorf("left")
	errRefused = fmt.Errorf("refused")
)

// visit asks for a completion, and may leave before its end.
func visit(url string, client *http.Client, random *rand.Rand, c int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	prompt := fmt.Sprintf("A greeting that many share, then client %d asks %d", c, random.Intn(9))
	n := 1 + random.Intn(60)
	ask := completionRequest{Prompt: prompt, MaxTokens: uint32(n), Stream: true}
	leave := random.Intn(3) == 0
	if leave && random.Intn(2) == 0 {
		// At any time, before the first byte too.
		time.AfterFunc(time.Duration(random.Intn(50))*time.Millisecond, cancel)
	}
	r, err := post(ctx, client, url, ask)
	if err != nil {
		if ctx.Err() != nil {
			return errLeft
		}
		return err
	}
	defer r.Body.Close()
	if r.StatusCode == http.StatusTooManyRequests {
		return errRefused
	}
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", r.Status)
	}
	var got strings.Builder
	stay := random.Intn(n)
	_, done, err := read(r.Body, func(text string) {
		if got.WriteString(text); leave && got.Len() > stay {
			cancel()
		}
	})
	want := toy.Continue(prompt, n)
	switch {
	case !strings.HasPrefix(want, got.String()):
		return fmt.Errorf("%q: %q", prompt, got.String())
	case done && got.Len() == n:
		return nil
	case ctx.Err() != nil:
		return errLeft
	}
	return fmt.Errorf("%q ended after %d of %d, %v", prompt, got.Len(), n, err)
}

func eventually(t *testing.T, otherwise string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %d goroutines", otherwise, runtime.NumGoroutine())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// The queue is full: 429, and no client waits for it.
func TestBackPressure(t *testing.T) {
	config := inflight.Config{NumBlocks: 64, MaxNumSeqs: 1, MaxWaiting: 2}
	s, engine := server(t, config, 2*time.Millisecond)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ask := completionRequest{Prompt: "p", MaxTokens: 500, Stream: true}
	var group sync.WaitGroup
	defer group.Wait()
	state := func(running, waiting int) func() bool {
		return func() bool {
			stats := engine.Stats()
			return stats.NumRunning == running && stats.NumWaiting == waiting
		}
	}
	for i, holds := range []func() bool{state(1, 0), state(1, 1), state(1, 2)} {
		group.Add(1)
		go func() {
			defer group.Done()
			if r, err := post(ctx, s.Client(), s.URL, ask); err == nil {
				_, _ = io.Copy(io.Discard, r.Body)
				_ = r.Body.Close()
			}
		}()
		eventually(t, fmt.Sprintf("request %d is not there", i), holds)
	}
	r, err := post(ctx, s.Client(), s.URL, ask)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	if r.StatusCode != http.StatusTooManyRequests || r.Header.Get("Retry-After") == "" {
		t.Error(r.Status)
	}
	cancel()
	eventually(t, "requests are left", state(0, 0))
}

// SIGTERM: what runs is answered to its end, and the program ends well.
func TestTheProgramShutsDown(t *testing.T) {
	program := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-latency", "5ms")
	program.Env = append(os.Environ(), "INFLIGHT_SERVER=1")
	stderr, err := program.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Process.Kill() })
	said := bufio.NewScanner(stderr)
	if !said.Scan() {
		t.Fatal("it says nothing")
	}
	address := regexp.MustCompile(`address=(\S+)`).FindStringSubmatch(said.Text())
	if address == nil {
		t.Fatal(said.Text())
	}
	url := "http://" + address[1]
	r, err := post(context.Background(), http.DefaultClient, url,
		completionRequest{Prompt: "prompt", MaxTokens: 60, Stream: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	var got strings.Builder
	_, done, err := read(r.Body, func(text string) {
		if got.Len() == 0 {
			if err := program.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		got.WriteString(text)
	})
	if err != nil || !done || got.String() != toy.Continue("prompt", 60) {
		t.Errorf("%q, %v", got.String(), err)
	}
	for said.Scan() {
		t.Log(said.Text())
	}
	if err := program.Wait(); err != nil {
		t.Error(err)
	}
	http.DefaultClient.CloseIdleConnections()
}
