package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/tracing"
	_ "github.com/moby/buildkit/util/tracing/childprocess" // reads the trace that the daemon was started in
	"github.com/moby/buildkit/util/tracing/detect"
	_ "github.com/moby/buildkit/util/tracing/detect/jaeger" // an exporter of OTEL_TRACES_EXPORTER
	"github.com/moby/buildkit/util/tracing/transform"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	tracev1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"
)

// telemetry is the daemon's own tracing and metrics; the environment (OTEL_*)
// says where they go. The zero value is one that has not been started.
type telemetry struct {
	tracer *sdktrace.TracerProvider
	meter  *sdkmetric.MeterProvider
}

func startTelemetry(ctx context.Context) (telemetry, error) {
	spans, err := spanExporter(ctx)
	if err != nil {
		return telemetry{}, err
	}
	traceOpts := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(detect.Resource()),
		sdktrace.WithSyncer(detect.Recorder),
	}
	if spans != nil {
		traceOpts = append(traceOpts, sdktrace.WithBatcher(spans))
	}
	meter, err := newMeter(ctx)
	if err != nil {
		return telemetry{}, err
	}
	return telemetry{tracer: sdktrace.NewTracerProvider(traceOpts...), meter: meter}, nil
}

// spanExporter is nil when the environment names none.
func spanExporter(ctx context.Context) (sdktrace.SpanExporter, error) {
	exp, err := detect.NewSpanExporter(ctx)
	if err != nil || detect.IsNoneSpanExporter(exp) {
		return nil, err
	}
	return exp, nil
}

func newMeter(ctx context.Context) (*sdkmetric.MeterProvider, error) {
	opts := []sdkmetric.Option{
		sdkmetric.WithResource(detect.Resource()),
		sdkmetric.WithView(buildDurationView()),
	}
	if r, err := prometheus.New(); err != nil {
		bklog.G(ctx).WithError(err).Error("failed prometheus metrics configuration")
	} else {
		opts = append(opts, sdkmetric.WithReader(r))
	}
	exp, err := detect.NewMetricExporter(ctx)
	if err != nil {
		return nil, err
	}
	if !detect.IsNoneMetricExporter(exp) {
		opts = append(opts, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exp)))
	}
	return sdkmetric.NewMeterProvider(opts...), nil
}

// buildDurationView keeps the durations of builds in buckets of exponential
// width, which Prometheus shows as one native histogram rather than a series for
// each bucket, and keeps no attribute but the status.
func buildDurationView() sdkmetric.View {
	return sdkmetric.NewView(
		sdkmetric.Instrument{Name: "buildkit.build.duration", Kind: sdkmetric.InstrumentKindHistogram},
		sdkmetric.Stream{
			Aggregation:     sdkmetric.AggregationBase2ExponentialHistogram{MaxSize: 160, MaxScale: 20},
			AttributeFilter: attribute.NewAllowKeysFilter("status"),
		})
}

// statsHandler traces and measures the calls of the API.
func (t telemetry) statsHandler() stats.Handler {
	return tracing.ServerStatsHandler(
		otelgrpc.WithTracerProvider(t.tracer),
		otelgrpc.WithMeterProvider(t.meter),
		otelgrpc.WithPropagators(propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})))
}

// Shutdown sends what has not been sent; ctx bounds it.
func (t telemetry) Shutdown(ctx context.Context) error {
	var errs []error
	if t.tracer != nil {
		errs = append(errs, t.tracer.Shutdown(ctx))
	}
	if t.meter != nil && ctx.Err() == nil {
		errs = append(errs, t.meter.Shutdown(ctx))
	}
	return errors.Join(errs...)
}

// traceSocket receives the traces of build steps and passes them on.
type traceSocket struct {
	tracev1.UnimplementedTraceServiceServer
	exporter sdktrace.SpanExporter
	server   *grpc.Server
	served   chan struct{}
}

// serveTraces listens on a Unix socket that steps may use.
func serveTraces(path string, exp sdktrace.SpanExporter) (*traceSocket, error) {
	l, err := listenShared(path)
	if err != nil {
		return nil, fmt.Errorf("creating trace controller listener: %w", err)
	}
	t := &traceSocket{exporter: exp, server: grpc.NewServer(), served: make(chan struct{})}
	tracev1.RegisterTraceServiceServer(t.server, t)
	go func() {
		defer close(t.served)
		if err := t.server.Serve(l); err != nil {
			bklog.L.Errorf("trace socket %s: %v", path, err)
		}
	}()
	return t, nil
}

// Export is the service's only method.
func (t *traceSocket) Export(ctx context.Context, req *tracev1.ExportTraceServiceRequest) (*tracev1.ExportTraceServiceResponse, error) {
	if err := t.exporter.ExportSpans(ctx, transform.Spans(req.GetResourceSpans())); err != nil {
		return nil, err
	}
	return &tracev1.ExportTraceServiceResponse{}, nil
}

// Close stops listening at once; steps lose what they have not sent.
func (t *traceSocket) Close() {
	t.server.Stop()
	<-t.served
}
