{{/*
Objects are called posthouse whatever the release is called: the proxies find each other by the Service of that name in
their own namespace. There is one mesh a cluster.
*/}}

{{/* Labels of every object. Takes a dict of root and component, so that a second component gets its own. */}}
{{- define "posthouse.labels" -}}
{{ include "posthouse.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects the pods: never changes, since a DaemonSet's selector cannot. */}}
{{- define "posthouse.selectorLabels" -}}
app.kubernetes.io/name: posthouse
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "posthouse.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{/* Ports of the program's defaults. */}}
{{- define "posthouse.linkPort" -}}4141{{- end }}
{{- define "posthouse.metricsPort" -}}9991{{- end }}

{{/* A bare off in a values file is false. */}}
{{- define "posthouse.tls" -}}
{{- if eq (toString .Values.tls) "false" }}off{{ else }}{{ .Values.tls }}{{ end }}
{{- end }}

{{/* What values.schema.json cannot say, or not in words. Each message names the value. */}}
{{- define "posthouse.check" -}}
{{- with .Values.image.repository }}
  {{- if contains ":" (splitList "/" . | last) }}
    {{- fail (printf "image.repository: %s has a tag: the tag goes to image.tag" .) }}
  {{- end }}
{{- end }}
{{- with .Values.kubernetesApi.host }}
  {{- /* An IPv6 address has more than one colon. */}}
  {{- if eq (len (splitList ":" .)) 2 }}
    {{- fail (printf "kubernetesApi.host: %s has a port: the port goes to kubernetesApi.port" .) }}
  {{- end }}
{{- end }}
{{- range $index, $variable := .Values.extraEnv }}
  {{- if hasPrefix "POSTHOUSE_" $variable.name }}
    {{- fail (printf "extraEnv[%d].name: %s is set by the chart's own values (a second setting of it would fight the first)" $index $variable.name) }}
  {{- end }}
  {{- if has $variable.name (list "KUBERNETES_SERVICE_HOST" "KUBERNETES_SERVICE_PORT") }}
    {{- fail (printf "extraEnv[%d].name: set kubernetesApi.host and kubernetesApi.port instead of %s" $index $variable.name) }}
  {{- end }}
{{- end }}
{{- $labels := dict "podLabels" .Values.podLabels "metrics.podMonitor.labels" .Values.metrics.podMonitor.labels "metrics.serviceMonitor.labels" .Values.metrics.serviceMonitor.labels }}
{{- range $value, $more := $labels }}
  {{- range $name, $_ := $more }}
    {{- if or (hasPrefix "app.kubernetes.io/" $name) (hasPrefix "helm.sh/" $name) }}
      {{- fail (printf "%s: %s is set by the chart" $value $name) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- with .Values.updateStrategy }}
  {{- if eq .type "RollingUpdate" }}
    {{- $surge := trimSuffix "%" (toString .rollingUpdate.maxSurge) | int }}
    {{- $unavailable := trimSuffix "%" (toString .rollingUpdate.maxUnavailable) | int }}
    {{- if eq (eq $surge 0) (eq $unavailable 0) }}
      {{- fail (printf "updateStrategy.rollingUpdate: one of maxSurge (%v) and maxUnavailable (%v) must be 0, the other not" .rollingUpdate.maxSurge .rollingUpdate.maxUnavailable) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if and (has .Release.Namespace .Values.tlsSecretNamespaces) (ne (include "posthouse.tls" .) "off") }}
  {{- fail (printf "tlsSecretNamespaces: in %s, the release's own namespace, every proxy could read the Secret posthouse-ca and be any node" .Release.Namespace) }}
{{- end }}
{{- if and .Values.tlsPermissive (eq (include "posthouse.tls" .) "off") }}
  {{- fail "tlsPermissive: it goes with tls node or service" }}
{{- end }}
{{- if and .Values.criticalPodsQuota.enabled (not .Values.priorityClassName) }}
  {{- fail "criticalPodsQuota.enabled: a quota for a priority class needs priorityClassName" }}
{{- end }}
{{- end }}
