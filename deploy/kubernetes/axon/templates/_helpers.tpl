{{- define "axon.name" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{- define "axon.selector" -}}
app.kubernetes.io/name: axon
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "axon.labels" -}}
{{ include "axon.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "axon.image" -}}
{{- $image := index .root.Values.images .name -}}
image: {{ printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) | quote }}
imagePullPolicy: {{ $image.pullPolicy }}
{{- end }}

{{/* What every pod of ours is: not root, nothing of the API server's, nothing that can be written but volumes. */}}
{{- define "axon.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "axon.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "axon.redisSecret" -}}
{{- if .Values.redis.enabled }}{{ include "axon.name" . }}-redis{{ else }}{{ required "redis.external.existingSecret: expected the name of a secret with the key url, got none, and redis.enabled is false" .Values.redis.external.existingSecret }}{{ end -}}
{{- end }}

{{- define "axon.redisAddress" -}}
{{- if .Values.redis.enabled }}{{ include "axon.name" . }}-redis.{{ .Release.Namespace }}.svc:6379{{ else }}{{ required "redis.external.address: expected host:port, got none, and redis.enabled is false" .Values.redis.external.address }}{{ end -}}
{{- end }}

{{/* Settings as environment variables: a map, as strings. */}}
{{- define "axon.settings" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "axon.environment" -}}
- name: AXON_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ include "axon.redisSecret" . }}, key: url}}
{{- with .Values.store.url }}
- name: AXON_STORE_URL
  value: {{ . | quote }}
- name: AXON_STORE_CACHE_BYTES
  value: {{ mul $.Values.store.cacheGiB 1024 1024 1024 | quote }}
{{- end }}
{{- include "axon.settings" .Values.environment }}
{{- end }}

{{- define "axon.environmentFrom" -}}
{{- with .Values.store.existingSecret }}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end }}

{{- define "axon.mounts" -}}
- {name: data, mountPath: /data}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "axon.volumes" -}}
{{- if .Values.store.url }}
- name: data
  emptyDir: {sizeLimit: {{ mul 2 .Values.store.cacheGiB }}Gi}
{{- else }}
- name: data
  persistentVolumeClaim: {claimName: {{ default (printf "%s-data" (include "axon.name" .)) .Values.store.volume.existingClaim }}}
{{- end }}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
{{- end }}

{{/* KEDA's triggers for tags: all unfinished jobs, so streams of every priority and those that wait after a crash. */}}
{{- define "axon.triggers" -}}
{{- range $number, $tag := .tags }}
{{- range $priority := list "high" "normal" "low" }}
- type: redis-streams
  name: {{ printf "%s%d" $priority $number }}
  metadata:
    address: {{ include "axon.redisAddress" $.root | quote }}
    enableTLS: {{ and (not $.root.Values.redis.enabled) $.root.Values.redis.external.tls | quote }}
    stream: {{ printf "{axon}:queue:%s:%s" $tag $priority | quote }}
    streamLength: "1"
  authenticationRef: {name: {{ include "axon.name" $.root }}-redis}
{{- end }}
- type: redis
  name: {{ printf "delayed%d" $number }}
  metadata:
    address: {{ include "axon.redisAddress" $.root | quote }}
    enableTLS: {{ and (not $.root.Values.redis.enabled) $.root.Values.redis.external.tls | quote }}
    listName: {{ printf "{axon}:delayed:%s" $tag | quote }}
    listLength: "1"
  authenticationRef: {name: {{ include "axon.name" $.root }}-redis}
{{- end }}
{{- end }}

{{- define "axon.formula" -}}
{{- $names := list -}}
{{- range $number, $tag := .tags -}}
{{- range $kind := list "high" "normal" "low" "delayed" -}}
{{- $names = append $names (printf "%s%d" $kind $number) -}}
{{- end -}}
{{- end -}}
{{ join " + " $names }}
{{- end }}

{{/* Where workers run, and on what. */}}
{{- define "axon.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Copies of a bucket's content are bounded by their volume: a limit of the pod would have it evicted for them. */}}
{{- define "axon.resources" -}}
{{- $gpus := int (default 0 .of.gpus) -}}
{{- $limits := .of.resources.limits -}}
{{- if .root.Values.store.url }}{{ $limits = omit $limits "ephemeral-storage" }}{{ end -}}
resources:
  requests:
    {{- toYaml .of.resources.requests | nindent 4 }}
  limits:
    {{- toYaml $limits | nindent 4 }}
    {{- if $gpus }}
    nvidia.com/gpu: {{ $gpus }}
    {{- end }}
{{- end }}

{{/* Names and the queue. */}}
{{- define "axon.egress" }}
# The cluster's name servers, or the cache that a node has of them.
- to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}, {ipBlock: {cidr: 169.254.20.10/32}}]
  ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
{{- if .Values.redis.enabled }}
- to:
    - podSelector:
        matchLabels:
          {{- include "axon.selector" . | nindent 10 }}
          app.kubernetes.io/component: redis
  ports: [{protocol: TCP, port: 6379}]
{{- else }}
- ports: [{protocol: TCP, port: {{ include "axon.redisAddress" . | splitList ":" | last | int }}}]
{{- end }}
{{- end }}

{{/* Object stores, and from the API webhooks. */}}
{{- define "axon.egressOut" -}}
{{- with .Values.networkPolicy.egressPorts }}
- to: [{ipBlock: {cidr: {{ $.Values.networkPolicy.egressCidr | quote }}}}]
  ports:
    {{- range . }}
    - {protocol: TCP, port: {{ . }}}
    {{- end }}
{{- end }}
{{- end }}
