package interop;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.RequestTimeoutException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.client.producer.selector.SelectMessageQueueByHash;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;

/**
 * Requests and replies on Apache's client.
 *
 * <pre>
 *   RequestPeer ask NAMESRV TOPIC COUNT      asks, one after the other and the last by a selector, then what nobody answers
 *   RequestPeer call NAMESRV TOPIC COUNT     the same by callback
 *   RequestPeer answer NAMESRV TOPIC COUNT   answers so many requests with "java: " and their bodies
 * </pre>
 * Client 5.3.3 can only be asked to {@code call}: its {@code ask} ends without a reply once the broker has acknowledged the request.
 */
public final class RequestPeer {
    private static final int LARGE = 20_000;

    private RequestPeer() {
    }

    public static void main(String[] args) throws Exception {
        DefaultMQProducer producer = new DefaultMQProducer("java_" + args[0]);
        producer.setNamesrvAddr(args[1]);
        producer.start();
        int status = 0;
        try {
            if (args[0].equals("ask") || args[0].equals("call")) {
                ask(producer, args[2], Integer.parseInt(args[3]), args[0].equals("call"));
            } else {
                answer(producer, args[1], args[2], Integer.parseInt(args[3]));
            }
        } catch (Exception error) {
            System.out.println("FAILED " + error);
            status = 1;
        }
        producer.shutdown();
        System.exit(status);
    }

    private static void ask(DefaultMQProducer producer, String topic, int count, boolean byCallback) throws Exception {
        for (int number = 0; number < count; number++) {
            Message request = new Message(topic, "question", ("q" + number).getBytes(StandardCharsets.UTF_8));
            Message reply;
            if (byCallback) {
                reply = called(producer, request, number == count - 1, 30_000);
            } else if (number == count - 1) {
                reply = producer.request(request, new SelectMessageQueueByHash(), "key", 30_000);
            } else {
                reply = producer.request(request, 30_000);
            }
            String body = new String(reply.getBody(), StandardCharsets.UTF_8);
            System.out.println("REPLY " + number + " " + (body.length() > LARGE ? "large" : body) + " " + reply.getTopic() + " " + reply.getTags());
        }
        Message silence = new Message(topic, "silence", "silence".getBytes(StandardCharsets.UTF_8));
        try {
            if (byCallback) {
                called(producer, silence, false, 2_000);
            } else {
                producer.request(silence, 2_000);
            }
        } catch (RequestTimeoutException error) {
            System.out.println("TIMEOUT");
        }
    }

    private static Message called(DefaultMQProducer producer, Message request, boolean bySelector, long timeout) throws Exception {
        CompletableFuture<Message> answer = new CompletableFuture<>();
        RequestCallback callback = new RequestCallback() {
            @Override
            public void onSuccess(Message reply) {
                if (reply != null) { // null when the request is acknowledged
                    answer.complete(reply);
                }
            }

            @Override
            public void onException(Throwable error) {
                answer.completeExceptionally(error);
            }
        };
        if (bySelector) {
            producer.request(request, new SelectMessageQueueByHash(), "key", callback, timeout);
        } else {
            producer.request(request, callback, timeout);
        }
        try {
            return answer.get(timeout + 10_000, TimeUnit.MILLISECONDS);
        } catch (ExecutionException error) {
            throw (Exception) error.getCause();
        }
    }

    private static void answer(DefaultMQProducer producer, String namesrv, String topic, int count) throws Exception {
        CountDownLatch missing = new CountDownLatch(count);
        DefaultMQPushConsumer consumer = new DefaultMQPushConsumer("java_answer_" + topic);
        consumer.setNamesrvAddr(namesrv);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(topic, "question");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (Message request : messages) {
                try {
                    byte[] body = ("java: " + new String(request.getBody(), StandardCharsets.UTF_8)).getBytes(StandardCharsets.UTF_8);
                    SendResult sent = producer.send(MessageUtil.createReplyMessage(request, body), 10_000);
                    System.out.println("REPLIED " + sent.getSendStatus());
                } catch (Exception error) {
                    System.out.println("FAILED " + error);
                }
                missing.countDown();
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        missing.await(90, TimeUnit.SECONDS);
        consumer.shutdown();
    }
}
